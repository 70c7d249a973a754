"""How a selection is written into a graph: as a Gather, as slices, or as a product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from slimdeploy.errors import GraphError
from slimdeploy.graph.axes import Ids
from slimdeploy.graph.options import Select
from slimdeploy.graph.work import Tensor, Work

_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
FLOAT_TYPES = frozenset(onnx.TensorProto.DataType.Value(name) for name in _FLOATS)
"""Element types, in onnx's numbers, of which a product can select."""


@dataclass(frozen=True)
class Pick:
    """Positions `local` out of `count` along `axis` of a tensor.

    `rank` is the tensor's number of axes, `type` its element type in onnx's numbers.
    """

    axis: int
    local: Ids
    count: int
    rank: int
    type: int


def positions(wanted: Sequence[int], held: Ids) -> Ids:
    """Where each of the `wanted` ids sits among those that a tensor holds.

    Raises:
        GraphError: if one is not held; the flow of tokens never asks for that.
    """
    place = {i: position for position, i in enumerate(held)}
    if missing := [i for i in wanted if i not in place]:
        raise GraphError(f"token {missing[0]} is asked of a tensor that does not hold it")
    return tuple(place[i] for i in wanted)


def is_identity(local: Ids, count: int) -> bool:
    """Whether taking `local` from an axis of `count` positions changes nothing."""
    return local == tuple(range(count))


def select(work: Work, tensor: Tensor, pick: Pick, form: Select = "gather") -> Tensor:
    """`tensor` with only the picked positions, written in one of `FORMS`; never an identity.

    Raises:
        GraphError: if the form cannot select from a tensor of this type.
    """
    return tensor if is_identity(pick.local, pick.count) else FORMS[form](work, tensor, pick)


def select_constant(work: Work, tensor: Tensor, axis: int, ids: Ids) -> Tensor:
    """A constant that holds the positions `ids` of `tensor` along `axis`."""
    values = np.take(tensor.values, np.asarray(ids, np.int64), axis)
    return work.constant(f"{tensor.name}.selected", values)


def runs(local: Ids) -> list[tuple[int, int]]:
    """The stretches of neighbours that `local` consists of, as (start, end).

    (0, 1, 2, 5, 7, 8) is [(0, 3), (5, 6), (7, 9)].
    """
    stretches: list[tuple[int, int]] = []
    for position in local:
        if stretches and stretches[-1][1] == position:
            stretches[-1] = (stretches[-1][0], position + 1)
        else:
            stretches.append((position, position + 1))
    return stretches


def _gather(work: Work, tensor: Tensor, pick: Pick) -> Tensor:
    index = work.constant(f"{tensor.name}.kept", np.asarray(pick.local, np.int64))
    return work.add("Gather", f"{tensor.name}.selected", [tensor, index], axis=pick.axis)


def _slices(work: Work, tensor: Tensor, pick: Pick) -> Tensor:
    """One Slice for each stretch of neighbours; of a prefix that is a single one."""
    stretches = runs(pick.local) or [(0, 0)]
    if len(stretches) == 1:
        return _slice(work, tensor, f"{tensor.name}.selected", pick.axis, *stretches[0])
    parts = [_slice(work, tensor, f"{tensor.name}.run", pick.axis, *run) for run in stretches]
    return work.add("Concat", f"{tensor.name}.selected", parts, axis=pick.axis)


def _slice(work: Work, tensor: Tensor, stem: str, axis: int, start: int, end: int) -> Tensor:
    bounds = [
        work.constant(f"{stem}.{name}", np.asarray([value], np.int64))
        for name, value in (("start", start), ("end", end), ("axis", axis))
    ]
    return work.add("Slice", stem, [tensor, *bounds])


def _product(work: Work, tensor: Tensor, pick: Pick) -> Tensor:
    """A one-hot matrix from the left along the last axis but one, from the right along the last.

    Exact for finite values: each result is one of the operand's values plus zeros.
    """
    if pick.type not in FLOAT_TYPES:
        name = onnx.TensorProto.DataType.Name(pick.type).lower()
        raise GraphError(
            f"tensor '{tensor.name}' ({name}): a product cannot select from it; "
            "use --select slice-concat"
        )
    matrix = np.zeros(
        (len(pick.local), pick.count), onnx.helper.tensor_dtype_to_np_dtype(pick.type)
    )
    matrix[np.arange(len(pick.local)), np.asarray(pick.local, np.int64)] = 1
    stem = f"{tensor.name}.selected"
    if pick.axis == pick.rank - 1:
        right = work.constant(f"{stem}.one_hot", np.ascontiguousarray(matrix.T))
        return work.add("MatMul", stem, [tensor, right])
    left = work.constant(f"{stem}.one_hot", matrix)
    if pick.axis == pick.rank - 2:
        return work.add("MatMul", stem, [left, tensor])
    perm = list(range(pick.rank))
    perm[pick.axis], perm[-2] = perm[-2], perm[pick.axis]
    moved = work.add("Transpose", f"{stem}.moved", [tensor], perm=perm)
    product = work.add("MatMul", f"{stem}.product", [left, moved])
    return work.add("Transpose", stem, [product], perm=perm)


FORMS: dict[Select, Callable[[Work, Tensor, Pick], Tensor]] = {
    "gather": _gather,
    "slice": _slices,
    "slice-concat": _slices,
    "one-hot": _product,
}
