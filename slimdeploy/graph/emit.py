"""How a selection is written into a graph. Another form (Slice, one-hot) has its place here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slimdeploy.errors import GraphError
from slimdeploy.graph.axes import Ids
from slimdeploy.graph.work import Tensor, Work


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


def select(work: Work, tensor: Tensor, axis: int, local: Ids) -> Tensor:
    """`tensor` with only the positions `local` along `axis`, by a Gather of constant indices."""
    index = work.constant(f"{tensor.name}.kept", np.asarray(local, np.int64))
    return work.add("Gather", f"{tensor.name}.selected", [tensor, index], axis=axis)


def select_constant(work: Work, tensor: Tensor, axis: int, ids: Ids) -> Tensor:
    """A constant that holds the positions `ids` of `tensor` along `axis`."""
    values = np.take(tensor.values, np.asarray(ids, np.int64), axis)
    return work.constant(f"{tensor.name}.selected", values)
