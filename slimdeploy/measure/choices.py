"""What a dynamic graph chooses: its rows as further outputs, and as ids of the dense model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from slimdeploy.errors import InputError
from slimdeploy.graph.dynamic import choice_names

Ids = NDArray[np.int64]


def with_choices(slim: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str | None]]:
    """A copy of `slim` that gives out the rows it chooses too, and their names block by block.

    Raises:
        InputError: if the model records no choices: it is a static one, or was changed since.
    """
    names = choice_names(slim)
    if names is None:
        raise InputError("records no choices: it was not made with a dynamic schedule")
    made = {name for node in slim.graph.node for name in node.output}
    if lost := [name for name in names if name and name not in made]:
        raise InputError(f"lost the tensor '{lost[0]}' of its choices: it was changed since export")
    copy = onnx.ModelProto()
    copy.CopyFrom(slim)
    for name in names:
        if name:
            value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)
            copy.graph.output.append(value)
    return copy, names


def chosen_ids(
    rows: Sequence[Ids | None], counts: Sequence[int], tokens: int, read: Sequence[int], images: int
) -> list[Ids]:
    """Global ids that each block keeps for each image, [images, counts[l]].

    Args:
        rows: what each block chooses among the tokens it is given, [images, counts[l]]; None where
            it keeps all of them, or `read`, the prefix tokens that blocks without patches keep.
    """
    ids = np.broadcast_to(np.arange(tokens), (images, tokens))
    found: list[Ids] = []
    for chosen, count in zip(rows, counts, strict=False):
        if chosen is not None:
            ids = np.take_along_axis(ids, chosen, axis=1)
        elif count < ids.shape[1]:
            ids = np.broadcast_to(np.asarray(read, np.int64), (images, len(read)))
        found.append(ids)
    return found
