"""What a build is asked for, checked before anything is started."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from slimdeploy.engine.protocol import TensorInfo
from slimdeploy.engine.sessions import Provider
from slimdeploy.errors import InputError

Backend = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]
Batch = tuple[int, int, int]
"""Smallest, most frequent and largest batch."""

SUFFIXES = {"onnxruntime": (".onnx",), "tensorrt": (".plan", ".engine", ".trt")}
SUFFIXES["tensorrt-rtx"] = SUFFIXES["tensorrt"]
RTX_TARGETS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX 1.7 compiles for."""


@dataclass(frozen=True)
class BuildRequest:
    """Everything that changes an engine, beside the model's bytes, the versions and the GPU.

    Attributes:
        backend: what builds it.
        batch: the batch profile; None for a model of fixed batch size.
        provider: of ONNX Runtime.
        workspace_gb: memory that kernels may use while the model runs, in GB (1e9 bytes); None
            leaves it to the builder.
        optimization_level: 0 (quick) to 5 (thorough); None leaves it to the builder.
        compute_capabilities: TensorRT-RTX: GPUs to compile for, as ("8.6", "8.9"); () compiles for
            all that it knows.
        version_compatible: TensorRT: let newer runtimes load the engine.
        hardware_compatible: TensorRT: let other GPUs run the engine.
    """

    backend: Backend
    batch: Batch | None = None
    provider: Provider = "cpu"
    workspace_gb: float | None = None
    optimization_level: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatible: HardwareCompatibility = "none"

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"{_flag(name)} {value}: is none of {', '.join(known)}")
        _check_numbers(self)
        _check_targets(self.compute_capabilities)
        _check_belongs(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> BuildRequest:
        """From `to_json` after a round trip through JSON."""
        tuples = {name: tuple(v) for name, v in fields.items() if isinstance(v, list)}
        return cls(**{**fields, **tuples})

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)


_CHOICES = {
    "backend": get_args(Backend),
    "provider": get_args(Provider),
    "hardware_compatible": get_args(HardwareCompatibility),
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_numbers(request: BuildRequest) -> None:
    workspace = request.workspace_gb
    if workspace is not None and not (math.isfinite(workspace) and workspace > 0):
        raise InputError(f"--workspace-gb {workspace}: must be more than 0")
    level = request.optimization_level
    if level is not None and not 0 <= level <= 5:
        raise InputError(f"--optimization-level {level}: must be 0 (quick) to 5 (thorough)")


def _check_targets(targets: Sequence[str]) -> None:
    for target in targets:
        if not re.fullmatch(r"\d+\.\d", target):
            raise InputError(
                f"--compute-capability {target}: expected major.minor, as 8.6; several with commas"
            )
        if target not in RTX_TARGETS:
            raise InputError(
                f"--compute-capability {target}: TensorRT-RTX compiles for "
                f"{', '.join(RTX_TARGETS)}; use --backend tensorrt on the GPU itself for others"
            )


def _check_belongs(request: BuildRequest) -> None:
    """Options of one backend that another would ignore."""
    owners = {
        "compute_capabilities": ("--compute-capability", "tensorrt-rtx"),
        "version_compatible": ("--version-compatible", "tensorrt"),
        "hardware_compatible": ("--hardware-compatible", "tensorrt"),
        "provider": ("--provider", "onnxruntime"),
    }
    for name, (flag, backend) in owners.items():
        default = BuildRequest.__dataclass_fields__[name].default
        if getattr(request, name) != default and request.backend != backend:
            raise InputError(f"{flag}: is for --backend {backend}, not {request.backend}")
    if request.backend == "onnxruntime":
        for name in ("workspace_gb", "optimization_level"):
            if getattr(request, name) is not None:
                raise InputError(f"{_flag(name)}: is for the TensorRT backends, not onnxruntime")


def check_output(output: Path, backend: Backend) -> None:
    """Refuse a suffix that would hide what the file is.

    Raises:
        InputError: naming the suffixes that fit.
    """
    if output.suffix not in SUFFIXES[backend]:
        raise InputError(
            f"{output}: --backend {backend} writes {' or '.join(SUFFIXES[backend])} files; name "
            "such a file with --output"
        )


def batch_profile(
    source: str,
    inputs: Sequence[TensorInfo],
    asked: tuple[int | None, int | None, int | None],
    backend: Backend = "tensorrt",
) -> Batch | None:
    """The batch profile for a model from --min-batch, --opt-batch and --max-batch.

    What is not given follows from what is: at least one image, at most 8, tuned for the most.

    Returns:
        None for a model of fixed batch size, and for ONNX Runtime, which takes any.

    Raises:
        InputError: if the three are not in order, the model's batch is fixed, or an axis other
            than the first varies.
    """
    if backend == "onnxruntime":
        if any(number is not None for number in asked):
            raise InputError("--min-batch, --opt-batch and --max-batch: are for TensorRT alone")
        return None
    for info in inputs:
        if None in info.shape[1:]:
            raise InputError(
                f"{source}: input '{info.name}' takes {info}: only its first axis, the batch, may "
                "vary; export it with a fixed image size"
            )
    if all(info.shape[:1] != (None,) for info in inputs):
        size = inputs[0].shape[0] if inputs and inputs[0].shape else 1
        if any(number not in (None, size) for number in asked):
            raise InputError(
                f"{source}: its batch size is fixed at {size}; leave out --min-batch, --opt-batch "
                "and --max-batch, or export it with a dynamic batch"
            )
        return None
    low, best, high = asked
    low = 1 if low is None else low
    high = max(8, low, best or 0) if high is None else high
    best = high if best is None else best
    if not 1 <= low <= best <= high:
        raise InputError(
            f"batch profile {low}, {best}, {high}: must be 1 <= --min-batch <= --opt-batch <= "
            "--max-batch"
        )
    return low, best, high
