"""Operators that pick positions along an axis or join axes: selections the graph already has."""

from __future__ import annotations

import numpy as np

from slimdeploy.graph.axes.relation import Ids, Link, Op, Port, Relation, opaque


def slice_(op: Op) -> Relation:
    """Every axis passes; a sliced one comes from `range(start, end, step)`."""
    given = [op.numbers(1, "starts"), op.numbers(2, "ends"), op.numbers(3, "axes")]
    starts, ends, axes = given
    if starts is None or ends is None:
        return opaque("its bounds are computed while it runs")
    axes = list(range(len(starts))) if axes is None else axes
    steps = op.numbers(4, "steps") or [1] * len(starts)
    shape = op.inputs[0]
    sources: dict[int, Ids] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[axis % len(shape)]
        if size >= 0:
            picked = tuple(range(size)[slice(start, _end(end, size, step), step)])
            sources[axis % len(shape)] = picked
    return _along(op, sources)


def _end(end: int, size: int, step: int) -> int | None:
    """Counting down, an end before the first position is written as a very negative number."""
    return None if step < 0 and end < -size else end


def _along(op: Op, sources: dict[int, Ids]) -> Relation:
    links = []
    for axis, size in enumerate(op.inputs[0]):
        source = sources.get(axis)
        whole = source is None or source == tuple(range(size))
        links.append(Link(Port(0, axis), Port(0, axis), None if whole else source))
    return Relation(tuple(links))


def split(op: Op) -> Relation:
    """Every axis passes; output i takes the i-th stretch of the axis that is split."""
    along = op.axis(0, len(op.inputs[0]))
    links, offset = [], 0
    for index, shape in enumerate(op.outputs):
        for axis, size in enumerate(shape):
            source = tuple(range(offset, offset + size)) if axis == along and size >= 0 else None
            links.append(Link(Port(index, axis), Port(0, axis), source))
        offset += shape[along]
    return Relation(tuple(links))


def gather(op: Op) -> Relation:
    """Picks `indices` along `axis`: the other axes pass, that one passes if indices are 1-D."""
    shape, index_shape = op.inputs[:2]
    along = op.axis(0, len(shape))
    before = [Link(Port(0, axis), Port(0, axis)) for axis in range(along)]
    shift = len(index_shape) - 1
    after = [Link(Port(0, axis + shift), Port(0, axis)) for axis in range(along + 1, len(shape))]
    indices = op.values[1]
    if indices is None:
        return Relation((*before, *after), why="it picks positions computed while it runs")
    size = shape[along]
    if size >= 0 and any(not -size <= i < size for i in np.ravel(indices)):
        return opaque(f"it picks a position outside of the axis, which has {size}")
    picked = tuple(int(i) % max(size, 1) for i in np.ravel(indices))
    if len(index_shape) == 1:
        middle = Link(Port(0, along), Port(0, along), picked)
        return Relation((*before, middle, *after))
    read = (Port(0, along), tuple(sorted(set(picked))))
    return Relation((*before, *after), reads=(read,), why="it picks single positions")


def concat(op: Op) -> Relation:
    """Every axis passes; along `axis` each input fills its own stretch of the output."""
    shape = op.outputs[0]
    along = op.axis(0, len(shape))
    links, offset = [], 0
    for index, piece in enumerate(op.inputs):
        for axis in range(len(shape)):
            source = None
            if axis == along and shape[along] >= 0:
                mine = range(offset, offset + piece[along])
                source = tuple(j - offset if j in mine else -1 for j in range(shape[along]))
            links.append(Link(Port(0, axis), Port(index, axis), source))
        offset += piece[along]
    return Relation(tuple(links))


RULES = {"Slice": slice_, "Split": split, "Gather": gather, "Concat": concat}
