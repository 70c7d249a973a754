"""The tensors between which the blocks of a graph lie, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from slimdeploy.errors import GraphError
from slimdeploy.graph.anatomy.prefix import entering_stream
from slimdeploy.graph.probes import probes_of
from slimdeploy.graph.slimming import prepared
from slimdeploy.graph.tokens.blocks import find_blocks


@dataclass(frozen=True)
class BlockNames:
    """One block of a canonical graph; a slim graph made of it bears the same names.

    Attributes:
        number: from 1.
        entering: the residual stream that enters it, [B, N, D].
        attention: the stream after its attention.
        output: the stream after its MLP: what enters the next block, if there is one. None where
            the last block ends in no sum that is known.
        anchor: the output of its Softmax or Attention node.
    """

    number: int
    entering: str
    attention: str
    output: str | None
    anchor: str


def block_names(model: onnx.ModelProto) -> list[BlockNames]:
    """The blocks of a graph that `dense_graph` gave, in order.

    Raises:
        GraphError: if a block's streams are not [B, N, D], or a tensor that marks it is gone.
    """
    work = prepared(model)
    blocks = find_blocks(work)[0]
    probes = probes_of(work, model)
    entering = [entering_stream(work, block).name for block in blocks]
    found = []
    for index, (block, probe) in enumerate(zip(blocks, probes, strict=True)):
        if block.axis != 1 or len(work.facts.shape(block.stream.name)) != 3:
            raise GraphError(
                f"tensor '{probe.attention}': the stream of block {index + 1} is not laid out as "
                "[batch, tokens, features]; its weights cannot be refitted"
            )
        output = entering[index + 1] if index + 1 < len(blocks) else probe.output
        names = BlockNames(index + 1, entering[index], probe.attention, output, probe.anchor)
        found.append(names)
    _check_known(model, found)
    return found


def _check_known(model: onnx.ModelProto, blocks: Sequence[BlockNames]) -> None:
    computed = {name for node in model.graph.node for name in node.output}
    for block in blocks:
        for name in (block.entering, block.attention):
            if name not in computed:
                raise GraphError(f"tensor '{name}' of block {block.number} is computed by none")
