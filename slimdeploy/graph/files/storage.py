"""Model files: read whole or not at all, written whole or not at all, of any size.

A model is one protobuf message of at most 2 GB, or a small message that names stretches of files
beside it (ONNX's external data). `load_model` takes both. Weights that fit into a message are read
into it; where they do not, they stay in their files and are read one by one, by `tensor_values`.
Names of such files come from whoever made the model, so none may lead out of its folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import onnx
from google.protobuf.message import DecodeError

from slimdeploy.errors import InputError
from slimdeploy.files import disk_errors, staged, unreadable
from slimdeploy.graph.files.external import (
    checked_stretch,
    is_outside,
    location_of,
    raw_bytes,
    read_stretch,
    set_inside,
    set_outside,
    stored_bytes,
    tensors,
)

MESSAGE_LIMIT = (1 << 31) - (1 << 24)
"""Bytes of weights that a message may hold: protobuf's 2 GiB, less room for the graph itself."""

_ALIGNMENT = 4096
"""Offsets are multiples of a memory page, so that runtimes can map the file."""


def load_model(path: Path, limit: int = MESSAGE_LIMIT) -> onnx.ModelProto:
    """The model in `path`, with weights that lie beside it.

    Args:
        limit: up to this many bytes of external weights are read into the model. Beyond, they
            stay in their files, named by absolute paths; `tensor_values` and `save_model` read
            them there.

    Raises:
        InputError: if the file or one beside it is missing, truncated or no ONNX model, or a
            tensor names a file outside the model's folder.
    """
    model = parse_model(path)
    outside = [tensor for tensor in tensors(model) if is_outside(tensor)]
    places = [checked_stretch(path, tensor) for tensor in outside]
    inline = sum(place.length for place in places) <= limit
    for tensor, place in zip(outside, places, strict=True):
        if inline:
            set_inside(tensor, read_stretch(place))
        else:
            set_outside(tensor, str(place.path), place.offset, place.length)
    return model


def parse_model(path: Path) -> onnx.ModelProto:
    """The message in `path`; weights beside it stay there, unchecked.

    Raises:
        InputError: if the file is missing, truncated or no ONNX model.
    """
    model = onnx.ModelProto()
    try:
        if path.stat().st_size > (1 << 31) - 1:
            raise InputError(
                f"{path}: is larger than 2 GB, which ONNX does not allow for one file; export it "
                "again with external data"
            )
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from error
    except (DecodeError, UnicodeDecodeError) as error:
        raise InputError(_refusal(path)) from error
    if not model.graph.node:
        raise InputError(_refusal(path))
    for entry in model.opset_import:
        if entry.domain == "ai.onnx":  # the default domain by its other name
            entry.domain = ""
    return model


def _unreadable(path: Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: no such file; give the path of an .onnx file")
    if path.is_dir():
        return InputError(f"{path}: is a folder; give the path of an .onnx file")
    return unreadable(path, error)


def _refusal(path: Path) -> str:
    return f"{path}: not a complete ONNX model (truncated, or another kind of file); export again"


def save_model(
    model: onnx.ModelProto, path: Path, limit: int = MESSAGE_LIMIT, inside: int = 4096
) -> None:
    """Write `model` to `path`; weights go to `<path>.data` if all of it exceeds `limit` bytes.

    Weights are copied one at a time. Files are replaced as `replaced_model` says.

    Args:
        inside: tensors of up to so many bytes stay in the model all the same: runtimes want
            shapes and axes there.

    Raises:
        InputError: as `replaced_model`, or if weights lie in a file that cannot be read.
    """
    with replaced_model(path) as temporary:
        write_model(model, temporary, limit, inside)


def write_model(
    model: onnx.ModelProto, path: Path, limit: int = MESSAGE_LIMIT, inside: int = 4096
) -> None:
    """As `save_model`, but straight to `path`: for the body of `replaced_model`.

    Raises:
        InputError: if weights lie in a file that cannot be read.
        OSError: if the disk is full; `replaced_model` says so.
    """
    size = sum(_size(tensor) for tensor in model.graph.initializer) + _rest(model).ByteSize()
    if size > limit:
        model = _moved_outside(model, _data_file(path), inside)
    _write_message(model, path)


@contextmanager
def replaced_model(path: Path) -> Iterator[Path]:
    """A path for `write_model`; what is written there replaces the model at `path`.

    If the body raises, all is as it was. If not, the model takes its name after its data file and
    whatever else was written beside it, as its manifest, have; a data file that only the old model
    named is removed; another's is never touched.

    Raises:
        InputError: if the folder cannot be written or the disk is full, or a file that is not the
            old model's has the name of the new one's data file.
    """
    data = _data_file(path)
    stale = data.is_file() and data.name in _files_named(path)
    with disk_errors(path), staged(path) as temporary:
        yield temporary
        written = _data_file(temporary).exists()
        if written and data.exists() and not stale:
            raise InputError(
                f"{data}: is not {path.name}'s own; remove it or choose another --output"
            )
    if stale and not written:
        data.unlink()


def _data_file(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def _files_named(path: Path) -> set[str]:
    """The external files that an existing model names, as it spells them."""
    try:
        model = parse_model(path)
    except InputError:
        return set()
    return {location_of(tensor) for tensor in tensors(model) if is_outside(tensor)}


def _size(tensor: onnx.TensorProto) -> int:
    return stored_bytes(tensor) if is_outside(tensor) else tensor.ByteSize()


def _rest(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without its initialisers."""
    rest = onnx.ModelProto()
    copy_fields(model, rest, {"graph"})
    copy_fields(model.graph, rest.graph, {"initializer"})
    for tensor in tensors(rest):
        if is_outside(tensor):
            set_inside(tensor, raw_bytes(tensor))
    return rest


def copy_fields(source: Any, target: Any, left_out: Collection[str]) -> None:
    """Copy all fields of a message into an empty one of its kind, but for those `left_out`."""
    for field, value in source.ListFields():
        if field.name in left_out:
            continue
        if field.is_repeated:
            getattr(target, field.name).MergeFrom(value)
        elif field.type == field.TYPE_MESSAGE:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _write_message(model: onnx.ModelProto, path: Path) -> None:
    """Serialise a model tensor by tensor: the bytes of all at once would double the memory."""
    rest = _rest(model)
    graph = rest.graph.SerializeToString()
    rest.ClearField("graph")
    stored = model.graph.initializer
    sizes = [_inside(tensor).ByteSize() for tensor in stored]
    heads = [_field_head(_INITIALIZER, size) for size in sizes]
    with path.open("wb") as file:
        file.write(rest.SerializeToString())
        file.write(_field_head(_GRAPH, len(graph) + sum(sizes) + sum(map(len, heads))))
        file.write(graph)
        for head, tensor in zip(heads, stored, strict=True):
            file.write(head)
            file.write(_inside(tensor).SerializeToString())


_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number


def _field_head(number: int, length: int) -> bytes:
    """What protobuf's wire format writes before a field that is itself a message."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits a byte, lowest first; the top bit says that more follow."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _inside(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """`tensor` with its numbers in it, unless they lie in the file being written."""
    if not is_outside(tensor) or not Path(location_of(tensor)).is_absolute():
        return tensor
    inside = onnx.TensorProto()
    copy_fields(tensor, inside, {"external_data", "data_location"})
    inside.raw_data = raw_bytes(tensor)
    return inside


def _moved_outside(model: onnx.ModelProto, data: Path, inside: int) -> onnx.ModelProto:
    """`model` with its large initialisers in the file `data` beside it."""
    moved = _rest(model)
    with data.open("wb") as file:
        for tensor in model.graph.initializer:
            entry = moved.graph.initializer.add(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
            )
            if tensor.data_type == onnx.TensorProto.STRING:
                entry.CopyFrom(tensor)
                continue
            raw = raw_bytes(tensor)
            if len(raw) <= inside:
                set_inside(entry, raw)
                continue
            set_outside(entry, data.name, _append(file, raw), len(raw))
    return moved


def _append(file: IO[bytes], raw: bytes) -> int:
    """Write `raw` at the next page of the file; its offset."""
    offset = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
    file.write(b"\0" * (offset - file.tell()))
    file.write(raw)
    return offset
