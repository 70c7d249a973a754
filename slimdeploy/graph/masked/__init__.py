"""What a slim graph has to compute, by other means: the dense graph with dropped tokens masked.

Every token is still computed in every block, but in block l+1 the attention of all of them is kept
from the keys that block l drops. A kept token's row then holds what the slim graph computes for
it; the rows of dropped tokens mean nothing, and no one reads them. Nothing of the slimmer takes
part: no axis is followed, no node rewritten, no token selected. Only the attention nodes and the
number of tokens come from `find_blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import onnx

from slimdeploy.graph.masked.pooling import pool_over
from slimdeploy.graph.masked.scores import Editor
from slimdeploy.graph.probes import (
    Probe,
    add_outputs,
    inlined,
    probes_of,
    stream_names,
    token_count,
)
from slimdeploy.graph.slimming import prepared
from slimdeploy.graph.tokens.keep import checked_keep
from slimdeploy.graph.work import Work

__all__ = ["masked_graph", "masked_streams"]


def masked_graph(
    model: onnx.ModelProto,
    keep: Sequence[Sequence[int]],
    *,
    pool_kept: bool = False,
    outputs: Literal["logits", "blocks"] = "logits",
) -> onnx.ModelProto:
    """The dense graph in which no token attends to what the block before has dropped.

    Args:
        model: a dense graph; it is left as it is.
        keep: for each block the global ids of the tokens that it keeps, as for `slim_graph`.
        pool_kept: let a head that pools over tokens pool over `keep[-1]` only.
        outputs: "logits": those of the model. "blocks": these, and after them the residual stream
            of all tokens after each block's attention and MLP, named as in `find_probes(model)`.

    Raises:
        InputError: if `keep` does not fit the model.
        GraphError: if no block is found, blocks differ in their tokens, a node's scores cannot be
            masked, or with `pool_kept` the head does not pool in a way known here.

    Example (two blocks of 3 tokens, the first keeps 0 and 2):
        before: p1 = Softmax(s1)
        after:  m1 = Add(s1, [0, -1e30, 0]); p1 = Softmax(m1)
    """
    masked, work, probes = _masked(model, keep, pool_kept)
    if outputs == "blocks":
        add_outputs(masked, work, stream_names(probes))
    return masked


def masked_streams(
    model: onnx.ModelProto, keep: Sequence[Sequence[int]], *, pool_kept: bool = False
) -> tuple[onnx.ModelProto, list[Probe]]:
    """`masked_graph` with `outputs="blocks"`, and the probes that say which output is which."""
    masked, work, probes = _masked(model, keep, pool_kept)
    add_outputs(masked, work, stream_names(probes))
    return masked, probes


def _masked(
    model: onnx.ModelProto, keep: Sequence[Sequence[int]], pool_kept: bool
) -> tuple[onnx.ModelProto, Work, list[Probe]]:
    masked = inlined(model)
    work = prepared(masked)
    probes = probes_of(work, masked)
    tokens = token_count(probes)
    wanted = checked_keep(keep, len(probes), tokens)
    editor = Editor(masked)
    for probe, ids in zip(probes[1:], wanted, strict=False):
        if len(ids) < tokens:
            editor.hide_keys(probe.anchor, ids, tokens, tokens)
    if pool_kept and len(wanted[-1]) < tokens:
        pool_over(editor, work, probes[-1], wanted[-1])
    return masked, work, probes
