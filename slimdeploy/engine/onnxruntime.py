"""ONNX Runtime, on the CPU or on CUDA, and never on one while saying the other."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from slimdeploy.engine.protocol import Array, EngineInfo, Feeds, TensorInfo, check_feeds
from slimdeploy.errors import InputError, MissingError, one_line, requires

if TYPE_CHECKING:
    import onnxruntime

Provider = Literal["cpu", "cuda"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_NUMPY_NAMES = {"float": "float32", "double": "float64"}  # the others are spelled alike


def usable_cores() -> int:
    """CPU cores this process may run on, which a container may have cut down."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class OnnxRuntimeEngine:
    """A model loaded by ONNX Runtime; see `slimdeploy.engine.protocol.Engine`.

    Args:
        model: an ONNX file, or the bytes of one.
        provider: "cpu" or "cuda". There is no fallback from one to the other.
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
        _check_available(onnxruntime.get_available_providers(), provider)
        session = _open_session(model, self._name, provider, self._threads)
        self._provider = _provider_in_use(session, provider)
        self._inputs = tuple(_tensor_info(node) for node in session.get_inputs())
        self._outputs = tuple(_tensor_info(node) for node in session.get_outputs())
        self._session: onnxruntime.InferenceSession | None = session

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


def _check_available(available: list[str], provider: str) -> None:
    if provider not in _PROVIDERS:
        raise InputError(f"provider '{provider}' is not known: use {' or '.join(_PROVIDERS)}")
    if _PROVIDERS[provider] not in available:
        raise MissingError(
            f"this onnxruntime has no {_PROVIDERS[provider]}: uninstall onnxruntime, then "
            "pip install 'slimdeploy[gpu]', or use --provider cpu"
        )


def _open_session(
    model: Path | str | bytes, name: str, provider: Provider, threads: int
) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; what matters is raised below in one line
    # A pool that spins on after its run steals cores from another engine in the same process.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not isinstance(model, bytes):
        if not Path(model).is_file():
            raise InputError(f"{model}: no such file")
        model = str(model)
    try:
        return onnxruntime.InferenceSession(model, options, providers=[_PROVIDERS[provider]])
    except Exception as error:  # ONNX Runtime's errors share no other base class
        raise InputError(f"{name}: {_why_refused(error)}") from error


def _why_refused(error: Exception) -> str:
    text = one_line(error)
    if "INVALID_PROTOBUF" in text or "No graph was found" in text:
        return "not a complete ONNX model (truncated, or another kind of file); export it again"
    return f"ONNX Runtime cannot load it: {text}"


def _provider_in_use(session: onnxruntime.InferenceSession, provider: Provider) -> str:
    """The provider that runs the graph, which must be the one asked for."""
    used: str = session.get_providers()[0]
    if used != _PROVIDERS[provider]:
        raise MissingError(
            f"onnxruntime could not start {_PROVIDERS[provider]} and fell back to {used}: check "
            "the GPU driver and the CUDA libraries, or use --provider cpu"
        )
    return used


def _tensor_info(node: Any) -> TensorInfo:
    """From ONNX Runtime's description, in which a varying dimension is a string or None."""
    shape = tuple(dim if isinstance(dim, int) else None for dim in node.shape)
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    return TensorInfo(node.name, shape, _NUMPY_NAMES.get(kind, kind))
