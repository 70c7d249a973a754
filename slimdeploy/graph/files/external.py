"""Where the numbers of stored tensors lie: in the model, or in files beside it.

ONNX calls the second external data. The names of those files come from whoever made the model,
so none may lead out of the model's folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import onnx
from numpy.typing import NDArray

from slimdeploy.errors import InputError
from slimdeploy.files import unreadable

Array = NDArray[Any]


class Stretch(NamedTuple):
    """Where a tensor's bytes lie: a checked file, and a part of it."""

    path: Path
    offset: int
    length: int


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor of a model: initialisers, sparse ones, attributes, in subgraphs too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graph_tensors(graph)


def checked_stretch(model: Path, tensor: onnx.TensorProto) -> Stretch:
    """Where `tensor` lies, if that is inside the model's folder and inside the file."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    place = f"{model}: tensor '{tensor.name}'"
    path = _checked_location(model.parent, entries.get("location", ""), place)
    needed = stored_bytes(tensor)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", needed))
    except ValueError as error:
        raise InputError(f"{place} has an offset that is no number; export again") from error
    if offset < 0 or length != needed:
        raise InputError(
            f"{place} takes {needed} bytes, but its entry says {length} at {offset}; export again"
        )
    size = path.stat().st_size
    if offset + length > size:
        raise InputError(
            f"{place} ends at byte {offset + length} of {path.name}, which has only {size}: the "
            "file is truncated or another model's; copy it again"
        )
    return Stretch(path, offset, length)


def _checked_location(folder: Path, location: str, place: str) -> Path:
    """The file that `location` names, if it lies below `folder` once links are followed."""
    names = PurePosixPath(location), PureWindowsPath(location)
    absolute = any(name.is_absolute() or name.drive or name.root for name in names)
    if not location or "\0" in location or absolute or any(".." in name.parts for name in names):
        raise InputError(
            f"{place} names the external file '{location}': only files inside the model's folder "
            "are read; put it there and export again"
        )
    path = (folder / location).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError(
            f"{place} names the external file '{location}', a link that leads out of the model's "
            "folder; copy the file itself there"
        )
    if not path.is_file():
        raise InputError(
            f"{place} lies in '{location}', which is not beside the model; copy it there"
        )
    return path


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """The bytes that a tensor's numbers take, from its type and sizes alone.

    Raises:
        InputError: if the type has no fixed width (strings), or a size is negative.
    """
    kind = onnx.TensorProto.DataType
    if tensor.data_type in (kind.UNDEFINED, kind.STRING) or tensor.data_type not in kind.values():
        raise InputError(f"tensor '{tensor.name}' has a type that cannot lie outside the model")
    if min(tensor.dims, default=0) < 0:
        raise InputError(f"tensor '{tensor.name}' has a negative size; export again")
    count = int(math.prod(tensor.dims))
    bits = _NARROW.get(kind.Name(tensor.data_type))
    if bits:
        return -(-count * bits // 8)
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


_NARROW = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
"""Types of which several share a byte."""


def read_stretch(place: Stretch) -> bytes:
    """The bytes there.

    Raises:
        InputError: if the file has become unreadable or shorter.
    """
    try:
        with place.path.open("rb") as file:
            file.seek(place.offset)
            data = file.read(place.length)
    except OSError as error:
        raise unreadable(place.path, error) from error
    if len(data) != place.length:
        raise InputError(f"{place.path}: was shortened while it was read; copy it again")
    return data


def set_inside(tensor: onnx.TensorProto, data: bytes) -> None:
    """Put a tensor's bytes into it."""
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    tensor.raw_data = data


def set_outside(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Say where a tensor's bytes lie instead of holding them."""
    del tensor.external_data[:]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": location, "offset": str(offset), "length": str(length)}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def is_outside(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's numbers lie in a file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def tensor_values(tensor: onnx.TensorProto) -> Array:
    """The numbers of a tensor of a loaded model, read from its file if they lie there.

    Raises:
        InputError: if its file cannot be read, or its bytes do not fit its shape.
    """
    try:
        if not is_outside(tensor):
            return onnx.numpy_helper.to_array(tensor)
        inside = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        inside.raw_data = raw_bytes(tensor)
        return onnx.numpy_helper.to_array(inside)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(
            f"tensor '{tensor.name}' holds other bytes than its shape {list(tensor.dims)} and its "
            "type ask for; export again"
        ) from error


def raw_bytes(tensor: onnx.TensorProto) -> bytes:
    """The bytes of a tensor's numbers, in ONNX's layout.

    Raises:
        InputError: as `tensor_values`.
    """
    if not is_outside(tensor):
        if tensor.HasField("raw_data"):
            return tensor.raw_data
        return onnx.numpy_helper.from_array(tensor_values(tensor)).raw_data
    if not Path(location_of(tensor)).is_absolute():  # only `load_model` writes these, once checked
        raise InputError(f"tensor '{tensor.name}' lies in a file: read the model with load_model")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    place = Path(entries["location"]), int(entries["offset"]), int(entries["length"])
    return read_stretch(Stretch(*place))


def location_of(tensor: onnx.TensorProto) -> str:
    """The file that an outside tensor lies in, as the model spells it."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
