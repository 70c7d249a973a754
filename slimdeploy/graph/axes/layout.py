"""Operators that move, merge, split, stretch or reduce axes."""

from __future__ import annotations

from collections.abc import Iterable

from slimdeploy.graph.axes.elementwise import broadcast_links
from slimdeploy.graph.axes.relation import Link, Op, Port, Relation, Shape, opaque

_NAMES = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare"
)
REDUCTIONS = frozenset(_NAMES.split())


def transpose(op: Op) -> Relation:
    """Every axis passes to where `perm` puts it."""
    rank = len(op.inputs[0])
    perm = op.attrs.get("perm", range(rank - 1, -1, -1))
    return Relation(tuple(Link(Port(0, to), Port(0, at)) for to, at in enumerate(perm)))


def reshape(op: Op) -> Relation:
    """An axis passes if it is neither merged with another nor split (Reshape, Squeeze, ...)."""
    links, merged = [], []
    for old, new in factor_groups(op.inputs[0], op.outputs[0]):
        if len(old) == len(new) == 1:
            links.append(Link(Port(0, new[0]), Port(0, old[0])))
        else:
            merged.append(f"{_sizes(op.inputs[0], old)} into {_sizes(op.outputs[0], new)}")
    return Relation(tuple(links), why=f"it turns {' and '.join(merged) or 'no axis'}")


def factor_groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Split two shapes of equal volume into the smallest groups of axes with equal volumes.

    A negative size (a multiple of the batch) makes a group's volume negative, so the batch is
    never confused with a number. Axes of size 1 at the same place pair up; others join no group.
    (2, 3, 4) to (6, 2, 2) is [([0, 1], [0]), ([2], [1, 2])].
    """
    left, right = list(range(len(old))), list(range(len(new)))
    groups: list[tuple[list[int], list[int]]] = []
    while left or right:
        ones = _take_ones(old, left), _take_ones(new, right)
        groups += [([i], [j]) for i, j in zip(*ones, strict=False)]
        if left and right:
            groups.append(_equal_volumes(old, new, left, right))
        else:
            break
    return groups


def _take_ones(shape: Shape, axes: list[int]) -> list[int]:
    ones = []
    while axes and shape[axes[0]] == 1:
        ones.append(axes.pop(0))
    return ones


def _equal_volumes(
    old: Shape, new: Shape, left: list[int], right: list[int]
) -> tuple[list[int], list[int]]:
    """Take axes from the front of either side until both have the same volume."""
    a, b = [left.pop(0)], [right.pop(0)]
    while (one := _volume(old, a)) != (two := _volume(new, b)) and (left or right):
        if left and (abs(one) < abs(two) or not right):
            a.append(left.pop(0))
        else:
            b.append(right.pop(0))
    return a, b


def _volume(shape: Shape, axes: Iterable[int]) -> int:
    volume = 1
    for axis in axes:
        volume *= shape[axis]
    return volume


def _sizes(shape: Shape, axes: list[int]) -> str:
    return " x ".join("batch" if shape[axis] < 0 else str(shape[axis]) for axis in axes)


def expand(op: Op) -> Relation:
    """Every axis passes but those stretched from 1."""
    return Relation(broadcast_links(op.inputs[:1], op.outputs[0]))


def reduction(op: Op) -> Relation:
    """The axes that are not reduced pass."""
    rank = len(op.inputs[0])
    axes = op.numbers(1, "axes")
    if axes is None:
        if len(op.inputs) > 1 and op.inputs[1]:
            return opaque("its axes are computed while it runs")
        axes = [] if op.attrs.get("noop_with_empty_axes") else list(range(rank))
    reduced = {axis % rank for axis in axes}
    kept = [axis for axis in range(rank) if axis not in reduced]
    places = kept if op.attrs.get("keepdims", 1) else range(len(kept))
    links = tuple(Link(Port(0, to), Port(0, at)) for to, at in zip(places, kept, strict=True))
    pools = tuple(Port(0, axis) for axis in sorted(reduced)) if op.kind == "ReduceMean" else ()
    return Relation(links, pools=pools, why="it reduces over that axis")


def global_pool(op: Op) -> Relation:
    """The batch and the channels pass; the other axes are averaged, or their maximum taken."""
    links = (Link(Port(0, 0), Port(0, 0)), Link(Port(0, 1), Port(0, 1)))
    return Relation(links, why="it reduces over that axis")


RULES = {
    "Transpose": transpose,
    "Expand": expand,
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), global_pool),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    **dict.fromkeys(REDUCTIONS, reduction),
}
