"""Where blocks begin: the residual stream that enters one, at which a graph can be cut."""

from __future__ import annotations

from collections.abc import Sequence

from slimdeploy.errors import InputError
from slimdeploy.graph.blocks import Block
from slimdeploy.graph.work import Node, Tensor, is_constant, node_error, producer


def entering_stream(block: Block) -> Tensor:
    """The residual stream that enters `block`: what its attention is added to.

    Raises:
        GraphError: if both operands of that Add depend on the block's attention.
    """
    for tensor in block.add.inputs:
        if not is_constant(tensor) and not _depends(tensor, block.anchor):
            return tensor
    raise node_error(block.add, "adds the block's attention to nothing that enters the block")


def stream_after(blocks: Sequence[Block], count: int) -> Tensor:
    """The residual stream behind the first `count` blocks, as it enters the next one.

    Raises:
        InputError: if there is no next one.
    """
    if count >= len(blocks):
        raise InputError(
            f"--prefix-blocks {count}: the graph has {len(blocks)} blocks; give fewer than that"
        )
    return entering_stream(blocks[count])


def _depends(tensor: Tensor, anchor: Node) -> bool:
    """Whether `tensor` is computed from the output of `anchor`."""
    waiting, seen = [tensor], {tensor.name}
    while waiting:
        node = producer(waiting.pop())
        if node is anchor:
            return True
        for other in node.inputs if node else []:
            if other.name not in seen:
                seen.add(other.name)
                waiting.append(other)
    return False
