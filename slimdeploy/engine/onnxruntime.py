"""ONNX Runtime on the CPU, on CUDA or on TensorRT, and never on one while saying another."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from slimdeploy.engine.emulation import reopened
from slimdeploy.engine.host import usable_cores
from slimdeploy.engine.protocol import Array, EngineInfo, Feeds, TensorInfo, check_feeds
from slimdeploy.engine.sessions import Provider, open_session, session_options
from slimdeploy.errors import InputError, one_line, requires
from slimdeploy.measure.host import sums_bytes_exactly

if TYPE_CHECKING:
    import onnxruntime

_NUMPY_NAMES = {"float": "float32", "double": "float64"}  # the others are spelled alike


class OnnxRuntimeEngine:
    """A model loaded by ONNX Runtime; see `slimdeploy.engine.protocol.Engine`.

    Args:
        model: an ONNX file, or the bytes of one.
        provider: "cpu", "cuda" or "tensorrt". There is no fallback from one to another.
        threads: CPU threads within an operator; None takes every core the process may use.

    Raises:
        InputError: if the file is missing or is not a model that ONNX Runtime can load.
        MissingError: if ONNX Runtime is not installed or the provider cannot be had.
    """

    def __init__(
        self, model: Path | str | bytes, provider: Provider = "cpu", threads: int | None = None
    ) -> None:
        with requires("cpu"):
            import onnxruntime

        self._name = "model" if isinstance(model, bytes) else Path(model).name
        if threads is not None and threads < 1:
            raise InputError(f"{threads} threads: ask for 1 or more")
        self._threads = threads or usable_cores()
        self._version: str = onnxruntime.__version__
        session, remark = self._opened(model, provider)
        self._provider: str = ", ".join(filter(None, (session.get_providers()[0], remark)))
        self._inputs = tuple(tensor_info(node) for node in session.get_inputs())
        self._outputs = tuple(tensor_info(node) for node in session.get_outputs())
        self._session: onnxruntime.InferenceSession | None = session

    def _opened(
        self, model: Path | str | bytes, provider: Provider
    ) -> tuple[onnxruntime.InferenceSession, str]:
        """The session, and a remark if it is not the graph as it stands that runs."""
        try:
            return open_session(model, self._name, provider, _exact(self._threads)), ""
        except InputError as error:
            why = str(error.__cause__ or "")
            found = reopened(model, self._name, self._threads, why) if provider == "cpu" else None
            if found is None:
                raise
            return found

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
        if self._session is None:
            raise InputError(f"{self._name}: this engine is closed; open it again")
        feeds = check_feeds(self._name, self._inputs, images)
        names = [info.name for info in self._outputs]
        try:
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:  # ONNX Runtime's errors share no other base class
            raise InputError(f"{self._name}: inference failed: {one_line(error)}") from error

    def describe(self) -> EngineInfo:
        """What is running this model."""
        return EngineInfo(self._name, "onnxruntime", self._version, self._provider, self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session = None


def _exact(threads: int) -> onnxruntime.SessionOptions:
    """`session_options`, with exact sums of 8-bit products on every CPU.

    On x86 without VNNI the kernels for uint8 by int8 add products in 16 bits, which saturate: a
    ViT-Ti lost 10 points of top-1. Kernels for uint8 by uint8 do not. They are slower, and much
    slower than VNNI's, so that a CPU with VNNI, which needs none of this, is left alone.
    """
    options = session_options(threads)
    if not sums_bytes_exactly():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def tensor_info(node: Any) -> TensorInfo:
    """From ONNX Runtime's description, in which a varying dimension is a string or None."""
    shape = tuple(dim if isinstance(dim, int) else None for dim in node.shape)
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    return TensorInfo(node.name, shape, _NUMPY_NAMES.get(kind, kind))
