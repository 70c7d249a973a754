"""Sessions of ONNX Runtime of which every node runs where it was asked to."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slimdeploy.errors import InputError, MissingError, one_line

if TYPE_CHECKING:
    import onnxruntime

Provider = Literal["cpu", "cuda", "tensorrt"]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


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

    check_available(onnxruntime.get_available_providers(), provider)
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


def check_available(available: list[str], provider: str) -> None:
    """Refuse a provider that is not among those that ONNX Runtime has.

    Raises:
        InputError, MissingError: with what to do.
    """
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
