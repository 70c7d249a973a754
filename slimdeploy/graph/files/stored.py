"""Constants by name, of which the large ones stay where they are until someone asks for numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from slimdeploy.errors import GraphError
from slimdeploy.graph.files.external import Array, is_outside, stored_bytes, tensor_values

SMALL = 4096
"""Tensors with more elements than this are data; neither shapes nor positions are read off them."""


class StoredValues(LazyValues):  # type: ignore[misc]
    """The numbers of a stored tensor, which is neither copied nor edited.

    graphsurgeon's own form knows no narrow types and copies twice.
    """

    def __init__(self, tensor: onnx.TensorProto) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.dims)
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        self.nbytes = stored_bytes(tensor)

    def load(self) -> Array:
        """The numbers, read anew each time."""
        return tensor_values(self.tensor)


class StoredConstant(gs.Constant):  # type: ignore[misc]
    """A constant that does not hold on to numbers it has read: a pass may look at every weight."""

    @property
    def values(self) -> Array:
        held = self._values
        return held.load() if isinstance(held, StoredValues) else held

    @values.setter
    def values(self, values: Array) -> None:
        self._values = values


Held: TypeAlias = Array | StoredValues


def hold(tensor: onnx.TensorProto, check: bool = True) -> Held:
    """A stored tensor's numbers: read at once if they are few.

    Args:
        check: count the bytes of what is not read at once; that copies them for a moment.

    Raises:
        GraphError: if its bytes do not fit its shape and type.
    """
    if tensor.data_type == onnx.TensorProto.STRING:
        raise GraphError(f"tensor '{tensor.name}' holds strings, which no vision transformer needs")
    if math.prod(tensor.dims) <= SMALL:
        return tensor_values(tensor)
    held = StoredValues(tensor)
    if check and not is_outside(tensor) and len(tensor.raw_data) != held.nbytes:
        tensor_values(tensor)  # raises, unless the numbers lie in a field of their own type
    return held


class Values(Mapping[str, Array]):
    """Known tensors by name; numbers that are stored are read when they are asked for."""

    def __init__(self, held: Mapping[str, Held] | None = None) -> None:
        self.held: dict[str, Held] = dict(held or {})

    def __getitem__(self, name: str) -> Array:
        held = self.held[name]
        return held.load() if isinstance(held, StoredValues) else held

    def __contains__(self, name: object) -> bool:
        return name in self.held

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)

    def numbers(self, name: str) -> Array | None:
        """The value of `name` if it may say something of shapes or positions, else None.

        That is any small tensor, and indices of whatever size.
        """
        held = self.held.get(name)
        if held is None:
            return None
        few = math.prod(held.shape) <= SMALL
        return self[name] if few or held.dtype in (np.int64, np.int32) else None

    def agrees(self, name: str, other: Values) -> bool:
        """Whether both know `name` as the same numbers."""
        mine, yours = self.held[name], other.held.get(name)
        if yours is None or mine is yours:
            return yours is not None
        same: Any = mine.shape == yours.shape and np.array_equal(self[name], other[name])
        return bool(same)
