"""Recognise selections of constant positions in a finished graph, whatever their form."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from slimdeploy.graph.work import Node, Tensor, Work, is_constant, producer


def whole_selection(work: Work, node: Node, known: Collection[str] = ()) -> int | None:
    """How many positions `node` selects if those are all of an axis, in order; else None.

    A Gather of 0..n-1, a Slice from end to end, a Concat of Slices that puts back together what
    they took apart, and a product with an identity matrix are such. An identity matrix among the
    `known` tensors, those of the dense model, is a weight that happens to be one.
    """
    if node.op == "Gather":
        return _gather(work, node)
    if node.op == "Slice":
        return _slice(work, node)
    if node.op == "Concat":
        return _concat(work, node)
    return _product(node, known) if node.op == "MatMul" else None


def _size(work: Work, tensor: Tensor, axis: int) -> int:
    """The number of positions along `axis`; 0 if it is the batch or unknown."""
    shape = work.facts.shapes.get(tensor.name, ())
    return max(shape[axis % len(shape)], 0) if shape else 0


def _gather(work: Work, node: Node) -> int | None:
    if not is_constant(node.inputs[1]):
        return None
    indices = node.inputs[1].values
    count = _size(work, node.inputs[0], int(node.attrs.get("axis", 0)))
    whole = indices.ndim == 1 and np.array_equal(indices, np.arange(count))
    return count if whole else None


def _slice(work: Work, node: Node) -> int | None:
    """A Slice of constant bounds that leaves every size as it is."""
    ranges = _ranges(work, node)
    whole = all(
        end > 0 and (start, end, step) == (0, _size(work, node.inputs[0], axis), 1)
        for axis, (start, end, step) in ranges.items()
    )
    return max(end for _, end, _ in ranges.values()) if ranges and whole else None


def _concat(work: Work, node: Node) -> int | None:
    """Slices of one tensor along one axis, from its first position to its last."""
    makers = [maker for tensor in node.inputs if (maker := producer(tensor)) is not None]
    if len(makers) < len(node.inputs) or any(maker.op != "Slice" for maker in makers):
        return None
    source = makers[0].inputs[0]
    shape = work.facts.shapes.get(source.name, ())
    axis = int(node.attrs["axis"]) % max(len(shape), 1)
    end = 0
    for maker in makers:
        ranges = _ranges(work, maker)
        if maker.inputs[0] is not source or set(ranges) != {axis}:
            return None
        if ranges[axis][0] != end or ranges[axis][2] != 1:
            return None
        end = ranges[axis][1]
    return end if end and end == _size(work, source, axis) else None


def _ranges(work: Work, node: Node) -> dict[int, tuple[int, int, int]]:
    """(start, end, step) by axis, within its size; nothing where a bound is not constant."""
    given = [tensor for tensor in node.inputs[1:] if tensor.name]
    shape = work.facts.shapes.get(node.inputs[0].name, ())
    if not shape or not all(is_constant(tensor) for tensor in given):
        return {}
    columns = [[int(i) for i in np.ravel(tensor.values)] for tensor in given]
    axes = columns[2] if len(columns) > 2 else list(range(len(columns[0])))
    steps = columns[3] if len(columns) > 3 else [1] * len(axes)
    return {
        axis % len(shape): slice(start, end, step).indices(_size(work, node.inputs[0], axis))
        for start, end, axis, step in zip(columns[0], columns[1], axes, steps, strict=True)
    }


def _product(node: Node, known: Collection[str]) -> int | None:
    for tensor in node.inputs:
        if not is_constant(tensor) or tensor.name in known:
            continue
        if len(tensor.shape) == 2 and tensor.shape[0] == tensor.shape[1]:
            values = tensor.values
            if np.array_equal(values, np.eye(len(values), dtype=values.dtype)):
                return len(values)
    return None
