"""A parsed network as an engine's bytes, and the engine's layers read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slimdeploy.engine.building.request import BuildRequest
from slimdeploy.engine.gpu import Gpu
from slimdeploy.engine.layers import (
    EngineLayer,
    layers_of_inspector,
    layers_of_log,
    with_constants,
)
from slimdeploy.engine.protocol import TensorInfo
from slimdeploy.engine.trt.events import Progress, last_error, make_monitor
from slimdeploy.engine.trt.parse import Network
from slimdeploy.errors import InputError

_SPARE = 0.9
"""Share of the free memory that a workspace may take: the weights need some as well."""


def configure(
    trt: Any,
    parsed: Network,
    request: BuildRequest,
    inputs: Sequence[TensorInfo],
    progress: Progress,
) -> Any:
    """The builder's configuration for a request."""
    config = parsed.builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = make_monitor(trt, progress)
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    _set_hardware(trt, config, request)
    _set_targets(trt, config, request)
    if request.batch is not None:
        _set_profile(parsed.builder, config, request, inputs)
    return config


def _set_hardware(trt: Any, config: Any, request: BuildRequest) -> None:
    if request.hardware_compatible == "none":
        return
    name = request.hardware_compatible.replace("-", "_").upper()
    level = getattr(trt.HardwareCompatibilityLevel, name, None)
    if level is None:
        raise InputError(
            f"--hardware-compatible {request.hardware_compatible}: TensorRT {trt.__version__} has "
            "no such level; use ampere-plus, or a newer TensorRT"
        )
    config.hardware_compatibility_level = level


def _set_targets(trt: Any, config: Any, request: BuildRequest) -> None:
    """TensorRT-RTX: the GPUs to compile for; without any, it compiles for all it knows."""
    if not request.compute_capabilities:
        return
    config.num_compute_capabilities = len(request.compute_capabilities)
    for index, target in enumerate(request.compute_capabilities):
        capability = getattr(trt.ComputeCapability, f"SM{target.replace('.', '')}", None)
        if capability is None:
            raise InputError(
                f"--compute-capability {target}: TensorRT-RTX {trt.__version__} does not know it"
            )
        config.set_compute_capability(capability, index)


def _set_profile(
    builder: Any, config: Any, request: BuildRequest, inputs: Sequence[TensorInfo]
) -> None:
    profile = builder.create_optimization_profile()
    for info in inputs:
        sizes = [(batch, *info.shape[1:]) for batch in request.batch or ()]
        if info.shape[:1] == (None,):
            profile.set_shape(info.name, *sizes)
    config.add_optimization_profile(profile)


def workspace_limit(asked_gb: float | None, gpu: Gpu | None) -> float | None:
    """In GB: what was asked, and no more than is free now; None for no limit."""
    free = gpu.free_bytes * _SPARE / 1e9 if gpu is not None and gpu.free_bytes else None
    return min((limit for limit in (asked_gb, free) if limit is not None), default=None)


def set_workspace(trt: Any, config: Any, limit_gb: float | None) -> None:
    """Limit the memory that kernels may use."""
    if limit_gb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(limit_gb * 1e9))


def use_timing_cache(config: Any, data: bytes) -> bool:
    """Start from measured kernels; False if TensorRT would not have this cache."""
    cache = config.create_timing_cache(data)
    if cache is not None and config.set_timing_cache(cache, False):
        return True
    empty = config.create_timing_cache(b"")
    if empty is not None:
        config.set_timing_cache(empty, False)
    return False


def timing_cache_bytes(config: Any) -> bytes:
    """What was measured, to start from the next time."""
    cache = config.get_timing_cache()
    return b"" if cache is None else bytes(cache.serialize())


def serialize(parsed: Network, config: Any) -> bytes | None:
    """The engine, or None if the build failed; the log says why."""
    engine = parsed.builder.build_serialized_network(parsed.network, config)
    return None if engine is None else bytes(engine)


def engine_layers(
    trt: Any, logger: Any, plan: bytes, gpu: Gpu | None, request: BuildRequest, given: Sequence[str]
) -> tuple[list[EngineLayer], str]:
    """The engine's kernels, and where they were read: "inspector", "build log" or "" for nowhere.

    Without a GPU nothing of the runtime may be touched: it would crash.

    Args:
        given: names of the engine's inputs.

    Raises:
        InputError: if TensorRT does not load the engine that it has just built.
    """
    table = layers_of_log("\n".join(logger.lines))
    if any(layer.nodes for layer in table) or (table and gpu is None):
        return with_constants(table, given), "build log"
    if gpu is None:
        return [], ""
    runtime = trt.Runtime(logger)
    if request.version_compatible:
        runtime.engine_host_code_allowed = True  # it brings its own runtime along
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise InputError(f"TensorRT cannot load the engine that it built: {last_error(logger)}")
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return with_constants(layers_of_inspector(text), given), "inspector"
