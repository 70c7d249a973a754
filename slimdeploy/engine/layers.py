"""The kernels of a built engine, whichever way it tells of them.

TensorRT's inspector gives JSON, for which an engine must be loaded on a GPU. TensorRT-RTX prints
the same table at the end of a verbose build log, on a machine with no GPU; so does TensorRT 10.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from slimdeploy.errors import InputError

_NUMPY_NAMES = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Int8": "int8",
    "FP8": "float8e4m3fn",
    "Int32": "int32",
    "Int64": "int64",
    "Bool": "bool",
}
_FORMAT_WORDS = ("FP32", "float32"), ("FP16", "float16"), ("BF16", "bfloat16"), ("INT8", "int8")
_WEIGHTS = ("float32", "float16", "bfloat16", "int8", "float8e4m3fn")
_SYNCHRONISATION = ("signal", "wait", "shape_call")


@dataclass(frozen=True)
class Tensor:
    """A tensor between kernels: its dimensions (-1 where they vary) and numpy's type name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class EngineLayer:
    """One kernel.

    Attributes:
        name: what the compiler calls it: the operators it fused, or a tactic's name.
        kind: "gemm", "kgen", "runtime_fusion", ...
        nodes: names of the ONNX nodes that it computes a part of.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[Tensor, ...] = ()
    constants: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()

    @property
    def operators(self) -> tuple[str, ...]:
        """The fused operators, by the compiler's abbreviations, as ("Resh", "Gath"); or ()."""
        found = re.match(r"__myl_([A-Za-z]+)", self.name)
        return tuple(re.findall(r"[A-Z][a-z0-9]*", found[1])) if found else ()

    @property
    def computes(self) -> bool:
        """Whether it is a kernel at all, and not a mark in a stream."""
        return self.kind not in _SYNCHRONISATION

    @property
    def is_attention(self) -> bool:
        """Whether it is softmax(QK)V in one kernel."""
        return bool(re.search(r"(^|_)f?mha|attention", self.name.lower()))

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)


def layers_of_log(text: str) -> list[EngineLayer]:
    """The layer table at the end of a verbose build log; [] if there is none.

    TensorRT-RTX 1.7 writes one of the two forms that are read. The other, TensorRT 10's, was taken
    from public logs, of 10.10 among them: that version has never run here.
    """
    start = f"\n{text}".rfind("\nLayers:\nName: ")
    if start < 0:
        return []
    table = text[start:].partition("\nI/O Tensors:")[0].replace("\nName: ", "\n\0Name: ")
    return [_logged(row) for row in table.split("\0")[1:]]


def _logged(row: str) -> EngineLayer:
    head, *parts = re.split(r", (Inputs|Constants|Outputs): \[", row)
    name, _, kind = head.removeprefix("Name: ").rpartition(", LayerType: ")
    found = {key: _logged_tensors(part) for key, part in zip(parts[::2], parts[1::2], strict=True)}
    inputs, constants, outputs = (found.get(key, ()) for key in ("Inputs", "Constants", "Outputs"))
    nodes = _node_names(row.rpartition(", Metadata:")[2].partition("\n")[0])
    return EngineLayer(name, kind, nodes, inputs, constants, outputs)


def _logged_tensors(text: str) -> tuple[Tensor, ...]:
    pattern = (
        r"\{ Name: (.*?)(?:, Location: \w+)?, Dimensions: \[([-\d,]*)\]"
        r".*?, (?:Format/)?Datatype: ([^,}]*)"
    )
    return tuple(
        Tensor(name, tuple(int(d) for d in dims.split(",") if d), _dtype_of(kind.strip()))
        for name, dims, kind in re.findall(pattern, text)
    )


def _node_names(metadata: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\[ONNX Layer: ([^\]\x1e]*)\]", metadata))


def layers_of_inspector(text: str) -> list[EngineLayer]:
    """The layers in the JSON of TensorRT's engine inspector, of an engine built with detail.

    Raises:
        InputError: if it is no such JSON, or the engine was built without detailed layers.
    """
    try:
        rows = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"not the JSON of an engine inspector: {error}") from error
    if any(isinstance(row, str) for row in rows):
        raise InputError("the engine tells only the names of its layers; build it again")
    return [
        EngineLayer(
            row["Name"],
            row.get("LayerType", ""),
            _node_names(row.get("Metadata") or ""),
            *(_inspected(row.get(key) or ()) for key in ("Inputs", "Constants", "Outputs")),
        )
        for row in rows
    ]


def _inspected(rows: Iterable[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            row.get("Name", ""),
            tuple(row.get("Dimensions", ())),
            _dtype_of(str(row.get("Datatype") or row.get("Format/Datatype", ""))),
        )
        for row in rows
    )


def _dtype_of(text: str) -> str:
    """From a type's name, or a sentence that names it: "Row major linear FP16 format"."""
    if text in _NUMPY_NAMES:
        return _NUMPY_NAMES[text]
    found = (name for word, name in reversed(_FORMAT_WORDS) if re.search(rf"\b{word}\b", text))
    return next(found, text)


def with_constants(layers: Sequence[EngineLayer], given: Collection[str]) -> list[EngineLayer]:
    """The layers, with constants told from what kernels give each other.

    TensorRT 10 lists both as inputs: a constant is what no kernel gives.

    Args:
        given: names of the engine's inputs.
    """
    if any(layer.constants for layer in layers):
        return list(layers)
    made = {tensor.name for layer in layers for tensor in layer.outputs}.union(given)
    return [
        replace(
            layer,
            inputs=tuple(tensor for tensor in layer.inputs if tensor.name in made),
            constants=tuple(tensor for tensor in layer.inputs if tensor.name not in made),
        )
        for layer in layers
    ]


def weights_by_type(layers: Sequence[EngineLayer]) -> dict[str, int]:
    """How many constants the kernels hold in each type; each tensor is counted once."""
    unique = {tensor.name: tensor for layer in layers for tensor in layer.constants}
    counts: Counter[str] = Counter()
    for tensor in unique.values():
        if tensor.dtype in _WEIGHTS:
            counts[tensor.dtype] += math.prod(tensor.shape)
    return dict(sorted(counts.items()))
