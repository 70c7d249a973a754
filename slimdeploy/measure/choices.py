"""What a dynamic graph chooses: its rows as further outputs, and as ids of the dense model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from slimdeploy.dynamic import STANDARDISE_EPSILON
from slimdeploy.errors import InputError
from slimdeploy.graph.dynamic import choice_names

Ids = NDArray[np.int64]
Array = NDArray[Any]


def with_choices(slim: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str | None]]:
    """A copy of `slim` that gives out the rows it chooses too, and their names block by block.

    Raises:
        InputError: if the model records no choices: it is a static one, or was changed since.
    """
    names = choice_names(slim)
    if names is None:
        raise InputError("records no choices: it was not made with a dynamic schedule")
    return giving(slim, [name for name in names if name], "choices"), names


def giving(slim: onnx.ModelProto, names: Sequence[str], what: str) -> onnx.ModelProto:
    """A copy of `slim` that gives out the whole numbers `names` too, by which it says `what`.

    Raises:
        InputError: if one of them is computed no more.
    """
    made = {name for node in slim.graph.node for name in node.output}
    if lost := [name for name in names if name not in made]:
        raise InputError(f"lost the tensor '{lost[0]}' of its {what}: it was changed since export")
    copy = onnx.ModelProto()
    copy.CopyFrom(slim)
    for name in names:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [None, None])
        copy.graph.output.append(value)
    return copy


def chosen_ids(
    rows: Sequence[Ids | None], counts: Sequence[int], tokens: int, read: Sequence[int], images: int
) -> list[Ids]:
    """Global ids that each block keeps for each image, [images, counts[l]].

    Args:
        rows: what each block chooses among the tokens it is given, [images, counts[l]]; None where
            it keeps all of them, or `read`, the prefix tokens that blocks without patches keep.
    """
    found = [all_ids(tokens, images)]
    for chosen, count in zip(rows, counts, strict=False):
        found.append(ids_left(found[-1], chosen, count, read))
    return found[1:]


def all_ids(tokens: int, images: int) -> Ids:
    """What enters the first block, [images, tokens]."""
    return np.broadcast_to(np.arange(tokens), (images, tokens))


def ids_left(ids: Ids, rows: Ids | None, count: int, read: Sequence[int]) -> Ids:
    """What is left of `ids` [images, k] behind a block that keeps `count`; see `chosen_ids`."""
    if rows is not None:
        return np.take_along_axis(ids, rows, axis=1)
    if count < ids.shape[1]:
        return np.broadcast_to(np.asarray(read, np.int64), (len(ids), len(read)))
    return ids


def standardised(x: Array) -> Array:
    """Tokens with mean 0 and variance 1 over their channels, [..., D]."""
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    result: Array = centred / np.sqrt(variance + STANDARDISE_EPSILON)
    return result
