"""A TensorRT or TensorRT-RTX engine behind the engine protocol.

Never run on a GPU by us: written to the bindings of 10.3 to 11.4 and held to them by a test. What
can be checked without a GPU is checked first, since the runtime crashes without one.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np

from slimdeploy.engine.building.record import BuildRecord
from slimdeploy.engine.gpu import Gpu, find_gpu
from slimdeploy.engine.host import this_host
from slimdeploy.engine.preflight import open_record, preflight
from slimdeploy.engine.protocol import Array, EngineInfo, Feeds, TensorInfo, check_feeds
from slimdeploy.engine.trt.bindings import Flavour, load_bindings
from slimdeploy.engine.trt.events import last_error, make_logger
from slimdeploy.errors import InputError, MissingError, requires

_NUMPY = ("float32", "float16", "int8", "int32", "int64", "bool", "uint8")


class TensorRTEngine:
    """See the module, and `slimdeploy.engine.protocol.Engine`.

    Args:
        path: an engine that `slimdeploy build` wrote, with its manifest beside it.

    Raises:
        InputError: if it is missing, or for another machine; the remedy is named.
        GateError: if it is not the file that its manifest describes.
        MissingError: if this machine has no GPU, no driver or no TensorRT.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        manifest, record = open_record(self._path)
        self._gpu: Gpu = _gpu_for(self._path)
        preflight(manifest, record, this_host()).require(self._path)
        self._record: BuildRecord = record
        self._inputs = _infos(record.inputs)
        self._outputs = _infos(record.outputs)
        trt = load_bindings(cast(Flavour, record.backend))
        self._version = str(trt.__version__)
        self._logger = make_logger(trt)
        self._open(trt)

    def _open(self, trt: Any) -> None:
        with requires(self._record.backend):
            from polygraphy.cuda import DeviceArray, Stream

        self._runtime = trt.Runtime(self._logger)
        if self._record.version_compatible:
            self._runtime.engine_host_code_allowed = True  # it brings its own runtime along
        self._engine = self._runtime.deserialize_cuda_engine(self._path.read_bytes())
        if self._engine is None:
            raise InputError(f"{self._path}: TensorRT cannot load it: {last_error(self._logger)}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise MissingError(
                f"{self._path}: not enough GPU memory to run it ({last_error(self._logger)}): "
                "close other programs on the GPU, or build with a smaller --max-batch"
            )
        self._stream = Stream()
        self._new_array = DeviceArray
        self._arrays: dict[str, Any] = {}
        self._closed = False

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The model's inputs, in its order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The model's outputs, in its order."""
        return self._outputs

    def infer(self, images: Feeds) -> dict[str, Array]:
        """Every output by name for one batch; see `Engine.infer`."""
        name = self._path.name
        if self._closed:
            raise InputError(f"{name}: this engine is closed; open it again")
        feeds = check_feeds(name, self._inputs, images)
        check_batch(name, self._inputs, feeds, self._record.batch)
        for info in self._inputs:
            array = np.ascontiguousarray(feeds[info.name])
            self._context.set_input_shape(info.name, array.shape)
            device = self._device_array(info.name, array.shape, array.dtype)
            device.copy_from(array, self._stream)
        for info in self._outputs:
            shape = tuple(self._context.get_tensor_shape(info.name))
            self._device_array(info.name, shape, np.dtype(info.dtype))
        if not self._context.execute_async_v3(self._stream.ptr):
            raise InputError(f"{name}: inference failed: {last_error(self._logger)}")
        found = {info.name: self._host_array(info) for info in self._outputs}
        self._stream.synchronize()
        return found

    def _device_array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Memory on the GPU for a tensor, kept from call to call; its address is told."""
        array = self._arrays.get(name)
        if array is None:
            array = self._arrays[name] = self._new_array(shape=shape, dtype=dtype)
        array.resize(shape)
        self._context.set_tensor_address(name, array.ptr)
        return array

    def _host_array(self, info: TensorInfo) -> Array:
        device = self._arrays[info.name]
        # Not `device.dtype`: polygraphy deprecates reading it as a type of numpy's.
        host = np.empty(device.shape, info.dtype)
        device.copy_to(host, self._stream)
        return host

    def describe(self) -> EngineInfo:
        """What is running this model."""
        return EngineInfo(self._path.name, self._record.backend, self._version, self._gpu.name, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for array in self._arrays.values():
            array.free()
        self._arrays.clear()
        self._stream.free()
        # In this order: each holds memory of the next.
        del self._context, self._engine, self._runtime
        self._closed = True


def check_batch(
    name: str,
    inputs: tuple[TensorInfo, ...],
    feeds: dict[str, Array],
    batch: tuple[int, int, int] | None,
) -> None:
    """Refuse a batch that the engine was not built for.

    Raises:
        InputError: naming the profile.
    """
    if batch is None:
        return
    for info in inputs:
        size = feeds[info.name].shape[0]
        if info.shape[0] is None and not batch[0] <= size <= batch[2]:
            raise InputError(
                f"{name}: a batch of {size} is outside its profile, {batch[0]} to {batch[2]}: "
                "give such batches, or build it with another --min-batch and --max-batch"
            )


def _gpu_for(path: Path) -> Gpu:
    try:
        return find_gpu()
    except MissingError as error:
        raise MissingError(f"{path}: {error}; the .onnx runs on the CPU") from error


def _infos(tensors: Any) -> tuple[TensorInfo, ...]:
    for tensor in tensors:
        if tensor.dtype not in _NUMPY:
            raise InputError(
                f"'{tensor.name}' is {tensor.dtype}, which arrays here cannot hold: export the "
                "model with float32 inputs and outputs"
            )
    return tuple(TensorInfo(t.name, t.shape, t.dtype) for t in tensors)
