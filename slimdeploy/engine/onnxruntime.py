"""ONNX Runtime on the CPU, on CUDA or on TensorRT, and never on one while saying another."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from slimdeploy.engine.protocol import Array, EngineInfo, Feeds, TensorInfo, check_feeds
from slimdeploy.errors import InputError, MissingError, one_line, requires

if TYPE_CHECKING:
    import onnxruntime

Provider = Literal["cpu", "cuda", "tensorrt"]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
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
            return open_session(model, self._name, provider, session_options(self._threads)), ""
        except InputError as error:
            from slimdeploy.engine.emulation import reopened

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


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options that every session here has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; what matters is raised below in one line
    # A pool that spins on after its run steals cores from another engine in the same process.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def open_session(
    model: Path | str | bytes, name: str, provider: Provider, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    """A session of which every node runs on `provider`, or an error.

    Raises:
        InputError: if the file is missing or ONNX Runtime cannot load it.
        MissingError: if the provider cannot be had, or would leave nodes to the CPU.
        OSError: if `options` name a file to write and there is no room for it.
    """
    import onnxruntime

    _check_available(onnxruntime.get_available_providers(), provider)
    if not isinstance(model, bytes):
        if not Path(model).is_file():
            raise InputError(f"{model}: no such file")
        model = str(model)
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # What TensorRT does not take is for CUDA; each provider that is named may run a part.
    wanted = ["tensorrt", "cuda"] if provider == "tensorrt" else [provider]
    try:
        session = onnxruntime.InferenceSession(
            model, options, providers=[PROVIDERS[name] for name in wanted]
        )
    except Exception as error:  # ONNX Runtime's errors share no other base class
        if "disable_cpu_ep_fallback" in str(error):
            raise MissingError(_fell_back(provider, "CPUExecutionProvider")) from error
        if "serialization failed" in str(error):  # it says neither where nor why
            raise OSError(errno.ENOSPC, "ONNX Runtime could not write all of it") from error
        raise InputError(f"{name}: {_why_refused(error)}") from error
    used: str = session.get_providers()[0]
    if used != PROVIDERS[provider]:
        raise MissingError(_fell_back(provider, used))
    return session


def _check_available(available: list[str], provider: str) -> None:
    if provider not in PROVIDERS:
        raise InputError(f"provider '{provider}' is not known: use {' or '.join(PROVIDERS)}")
    if PROVIDERS[provider] not in available:
        raise MissingError(
            f"this onnxruntime has no {PROVIDERS[provider]}: uninstall onnxruntime, then "
            "pip install 'slimdeploy[gpu]', or use --provider cpu"
        )


def _why_refused(error: Exception) -> str:
    text = one_line(error)
    if "INVALID_PROTOBUF" in text or "No graph was found" in text:
        return "not a complete ONNX model (truncated, or another kind of file); export it again"
    return f"ONNX Runtime cannot load it: {text}"


def _fell_back(provider: Provider, used: str) -> str:
    return (
        f"onnxruntime could not start {PROVIDERS[provider]} and fell back to {used}: check "
        "the GPU driver and the CUDA libraries, or use --provider cpu"
    )


def tensor_info(node: Any) -> TensorInfo:
    """From ONNX Runtime's description, in which a varying dimension is a string or None."""
    shape = tuple(dim if isinstance(dim, int) else None for dim in node.shape)
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    return TensorInfo(node.name, shape, _NUMPY_NAMES.get(kind, kind))
