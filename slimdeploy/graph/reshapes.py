"""What the target of a Reshape says: no more than it must, and nothing shared."""

from __future__ import annotations

import numpy as np

from slimdeploy.graph.axes import Shape
from slimdeploy.graph.work import Node, Work, node_error


def set_target(work: Work, node: Node, old: Shape, new: Shape) -> None:
    """Make Reshape `node` turn shape `old` into `new`, for every batch.

    Raises:
        GraphError: if a multiple of the batch appears at two places where it cannot be copied.
    """
    target = reshape_target(old, new)
    if target.count(-1) > 1:
        raise node_error(node, "spreads the batch over two axes")
    node.attrs.pop("allowzero", None)
    stem = f"{node.name or node.outputs[0].name}.target"
    node.inputs[1] = work.constant(stem, np.asarray(target, np.int64))


def reshape_target(old: Shape, new: Shape) -> list[int]:
    """The target from `old` to `new`: 0 where a size is copied, -1 for a multiple of the batch."""
    copied = [axis < len(old) and old[axis] == size for axis, size in enumerate(new)]
    return [0 if copy else -1 if size < 0 else size for copy, size in zip(copied, new, strict=True)]
