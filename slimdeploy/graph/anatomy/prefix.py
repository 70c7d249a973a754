"""Where blocks begin: the residual stream that enters one, at which a graph can be cut."""

from __future__ import annotations

from collections.abc import Sequence

from slimdeploy.errors import InputError
from slimdeploy.graph.tokens.blocks import Block
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, node_error, producer


def entering_stream(work: Work, block: Block) -> Tensor:
    """The residual stream that enters `block`.

    That is what the attention is computed from and added to: the other operand of the first Add
    behind the attention whose other operand the attention depends on. Where attention and MLP run
    side by side, their sum comes before that Add.

    Raises:
        GraphError: if there is no such Add.
    """
    shape = work.facts.shape(block.stream.name)
    before = _ancestors(block.anchor)
    behind = {tensor.name for tensor in block.anchor.outputs}
    for node in work.graph.nodes:
        if not any(tensor.name in behind for tensor in node.inputs):
            continue
        behind.update(tensor.name for tensor in node.outputs)
        for tensor in node.inputs if node.op == "Add" else []:
            fits = tensor.name in before and work.facts.shapes.get(tensor.name) == shape
            if fits and not is_constant(tensor):
                return tensor
    raise node_error(block.add, "adds the block's attention to nothing that enters the block")


def stream_after(work: Work, blocks: Sequence[Block], count: int) -> Tensor:
    """The residual stream behind the first `count` blocks, as it enters the next one.

    Raises:
        InputError: if there is no next one.
    """
    if count >= len(blocks):
        raise InputError(
            f"--prefix-blocks {count}: the graph has {len(blocks)} blocks; give fewer than that"
        )
    return entering_stream(work, blocks[count])


def _ancestors(anchor: Node) -> set[str]:
    """The names of all tensors that `anchor` is computed from."""
    waiting, seen = [anchor], set[str]()
    while waiting:
        for tensor in waiting.pop().inputs:
            if tensor.name not in seen:
                seen.add(tensor.name)
                if (maker := producer(tensor)) is not None:
                    waiting.append(maker)
    return seen
