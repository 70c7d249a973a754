"""Rewrites that compute the same with less work, for dense and slim graphs alike (`--optimize`).

Code map:
    base                            what these passes share: each notes once what it left alone
    gelu, attention, merged_heads   several nodes become one operator
    key_bias, value_bias            biases that attention does not need
    fold_scale, layer_scale         multiplications folded into weights
    gemm                            projections on rows, with their bias
    patterns, projection, scores    what the passes look for
"""

from __future__ import annotations

from slimdeploy.graph.optimize.attention import AttentionOp
from slimdeploy.graph.optimize.fold_scale import FoldScale
from slimdeploy.graph.optimize.gelu import ErfGelu
from slimdeploy.graph.optimize.gemm import Gemm2D
from slimdeploy.graph.optimize.key_bias import DropKeyBias
from slimdeploy.graph.optimize.layer_scale import FoldLayerScale
from slimdeploy.graph.optimize.merged_heads import MergedHeads
from slimdeploy.graph.optimize.value_bias import FoldValueBias
from slimdeploy.graph.passes import Pass, SplitProjections

__all__ = [
    "AttentionOp",
    "DropKeyBias",
    "ErfGelu",
    "FoldLayerScale",
    "FoldScale",
    "FoldValueBias",
    "Gemm2D",
    "MergedHeads",
    "optimizations",
]


def optimizations() -> list[Pass]:
    """The passes of `--optimize`, in the order in which they run.

    Keys and values are separated first, for a bias of all three can be neither dropped nor
    folded; Gemm comes last, for the other passes look for MatMul and Add. `tools/speed.py`
    measures what each is worth. FoldScale is not among them: ONNX Runtime multiplies by the scale
    within the product of queries and keys, so there is nothing to gain.
    """
    return [
        ErfGelu(),
        SplitProjections(None, everywhere=True),
        AttentionOp(),
        MergedHeads(),
        DropKeyBias(),
        FoldValueBias(),
        FoldLayerScale(),
        Gemm2D(),
    ]
