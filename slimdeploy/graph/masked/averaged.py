"""What a graph that merges has to compute, by other means: the dense graph with groups averaged.

Every token is still computed in every block, but where a block begins each one is replaced by the
mean of its group. Equal keys share the attention that the logarithm of their number gives the one
that stands for them, so a row then holds what the merging graph computes for its group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from slimdeploy.graph.masked.scores import Editor
from slimdeploy.graph.probes import (
    add_outputs,
    element_type,
    entering,
    give_streams,
    inlined,
    probes_of,
    stream_names,
    token_count,
)
from slimdeploy.graph.slimming import prepared


@dataclass(frozen=True)
class Averaged:
    """A dense graph that averages, and the names of what is fed and looked at.

    Attributes:
        means: per block the input [N, N] that its entering tokens are multiplied by; None where
            nothing is averaged.
        entering: per block the tokens that enter it, before that, [B, N, D].
        tokens: N.
    """

    model: onnx.ModelProto
    means: list[str | None]
    entering: list[str]
    tokens: int


def averaged_graph(dense: onnx.ModelProto, merges: Sequence[bool]) -> Averaged:
    """The dense graph with a product before each block that merges, and its streams as outputs.

    Args:
        dense: it is left as it is.
        merges: of each block whether it merges.

    Raises:
        GraphError: if no block is found, or blocks differ in their tokens.
    """
    model = inlined(dense)
    work = prepared(model)
    probes = probes_of(work, model)
    tokens = token_count(probes)
    add_outputs(model, work, stream_names(probes))
    streams = [entering(model, probe) for probe in probes]
    give_streams(model, streams, probes)
    editor = Editor(model)
    means = [
        _average(editor, stream, tokens, index) if merged else None
        for index, (stream, merged) in enumerate(zip(streams, merges, strict=True))
    ]
    return Averaged(model, means, streams, tokens)


def _average(editor: Editor, stream: str, tokens: int, index: int) -> str:
    """Let all that reads `stream` read its product with a new input, whose name is returned."""
    name = editor.fresh(f"averaged.block{index + 1}")
    kind = element_type(editor.types, stream)
    shape = [tokens, tokens]
    editor.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    readers = [node for node in editor.graph.node if stream in node.input]
    product = editor.insert(readers[0], "MatMul", [name, stream])
    for node in readers:
        for place, read in enumerate(node.input):
            if read == stream:
                node.input[place] = product
    return name
