"""The same rounding on a runtime without bfloat16: stored in it, computed in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import onnx
import onnx_graphsurgeon as gs

from slimdeploy.files import TEMPORARY
from slimdeploy.graph.files.storage import load_model, save_model
from slimdeploy.graph.work import Node, Tensor, Work, is_constant

_FLOAT, _BFLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with each node on bfloat16 tensors between a cast to float32 and one back.

    Every tensor holds the numbers it would hold, and every sum is made in float32, as hardware
    makes it: accuracy can be measured with it, speed can not.

    Raises:
        GraphError: if the model is not a valid graph.
    """
    work = Work.of(model)
    held: dict[str, Tensor] = {}
    for node in list(work.graph.nodes):
        if node.op == "Cast":
            continue
        for index, tensor in enumerate(node.inputs):
            if _is_low(work, tensor):
                node.inputs[index] = _widened(work, tensor, held)
        for index, tensor in enumerate(node.outputs):
            if _is_low(work, tensor):
                node.outputs[index] = _narrowed(work, node, tensor)
    for tensor in work.graph.tensors().values():
        if tensor.dtype == ml_dtypes.bfloat16 and not is_constant(tensor):
            tensor.dtype = None
    work.refresh()
    return work.export()


@contextmanager
def emulated_file(model: Path | str | bytes) -> Iterator[str | None]:
    """A file of `emulated(model)`; None if nothing in it is bfloat16.

    Raises:
        InputError: if the model cannot be read.
    """
    loaded = onnx.load_from_string(model) if isinstance(model, bytes) else load_model(Path(model))
    low = any(tensor.data_type == _BFLOAT16 for tensor in loaded.graph.initializer)
    if not low and not any(_casts_low(node) for node in loaded.graph.node):
        yield None
        return
    with TemporaryDirectory(prefix=TEMPORARY) as folder:
        path = Path(folder) / "emulated.onnx"
        save_model(emulated(loaded), path)
        yield str(path)


def _casts_low(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and any(item.i == _BFLOAT16 for item in node.attribute)


def _is_low(work: Work, tensor: Tensor) -> bool:
    if is_constant(tensor):
        return bool(tensor.dtype == ml_dtypes.bfloat16)
    return work.facts.types.get(tensor.name) == _BFLOAT16


def _widened(work: Work, tensor: Tensor, held: dict[str, Tensor]) -> Tensor:
    if tensor.name not in held:
        stem = f"{tensor.name}.float32"
        if is_constant(tensor):
            held[tensor.name] = work.constant(stem, tensor.values.astype("float32"))
        else:
            held[tensor.name] = work.add("Cast", stem, [tensor], to=_FLOAT)
            held[tensor.name].dtype = None
    return held[tensor.name]


def _narrowed(work: Work, node: Node, tensor: Tensor) -> Tensor:
    """A float32 output in place of `tensor`, which becomes its cast."""
    name = work.fresh(f"{tensor.name}.wide")
    wide = gs.Variable(name)
    work.graph.nodes.append(gs.Node("Cast", f"{name}.cast", {"to": _BFLOAT16}, [wide], [tensor]))
    return wide
