"""Rewrites that compute the same with less work, for dense and slim graphs alike (`--optimize`)."""

from __future__ import annotations

from slimdeploy.graph.optimize.attention import AttentionOp
from slimdeploy.graph.optimize.fold_scale import FoldScale
from slimdeploy.graph.optimize.gelu import ErfGelu
from slimdeploy.graph.optimize.gemm import Gemm2D
from slimdeploy.graph.optimize.key_bias import DropKeyBias
from slimdeploy.graph.optimize.layer_scale import FoldLayerScale
from slimdeploy.graph.optimize.value_bias import FoldValueBias

__all__ = [
    "AttentionOp",
    "DropKeyBias",
    "ErfGelu",
    "FoldLayerScale",
    "FoldScale",
    "FoldValueBias",
    "Gemm2D",
]
