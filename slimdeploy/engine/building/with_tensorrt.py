"""One TensorRT or TensorRT-RTX build, start to end, in the process it is called in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from slimdeploy.engine.building import cache
from slimdeploy.engine.building.failures import explain
from slimdeploy.engine.building.report import BuildReport
from slimdeploy.engine.building.request import BuildRequest
from slimdeploy.engine.gpu import Gpu, find_gpu, gpu_or_none
from slimdeploy.engine.layers import EngineLayer, weights_by_type
from slimdeploy.engine.protocol import TensorInfo
from slimdeploy.engine.trt import build, parse
from slimdeploy.engine.trt.bindings import Flavour, load_bindings
from slimdeploy.engine.trt.events import Progress, make_logger
from slimdeploy.errors import InputError, MissingError, SlimdeployError

_FAR_MORE = 2
"""So many times the workspace that an engine was built with are worth building it anew."""

Lookup = Callable[[str, Gpu | None], BuildReport | None]
"""Given the backend's version and the GPU, the report of an engine found in the cache."""


def require_tensorrt(flavour: Flavour) -> tuple[Any, Gpu | None]:
    """The bindings, and the GPU, without which TensorRT itself builds nothing.

    Raises:
        MissingError: if either is not here.
    """
    trt = load_bindings(flavour)
    if flavour == "tensorrt-rtx":
        return trt, gpu_or_none()
    try:
        return trt, find_gpu()
    except MissingError as error:
        raise MissingError(
            f"--backend tensorrt: {error}, or use --backend tensorrt-rtx, which compiles "
            "without one"
        ) from error


@dataclass
class TensorRTBuild:
    """The steps of one build, which share the bindings and the log."""

    model: Path
    request: BuildRequest
    timing_cache: Path | None
    cache_folder: Path
    progress: Progress
    notes: list[str] = field(default_factory=list)

    def run(self, target: Path, lookup: Lookup) -> BuildReport:
        """Write the engine to `target`.

        Raises:
            SlimdeployError: in words, whatever went wrong.
        """
        trt, gpu = require_tensorrt(cast(Flavour, self.request.backend))
        workspace = build.workspace_limit(self.request.workspace_gb, gpu)
        if found := self._reusable(lookup(trt.__version__, gpu), workspace):
            return found
        self._note_workspace(workspace, gpu)
        logger = make_logger(trt)
        began = time.perf_counter()
        parsed = parse.parse(trt, logger, self.model)
        parsed_at = time.perf_counter()
        inputs, outputs = parse.tensors(trt, parsed.network)
        attentions = tuple(parse.attentions(trt, parsed.network))
        config = build.configure(trt, parsed, self.request, inputs, self.progress)
        build.set_workspace(trt, config, workspace)
        timing = self._use_timing_cache(trt, config, gpu)
        plan = self._serialize(parsed, config, logger)
        built_at = time.perf_counter()
        self._keep_timings(config, timing)
        target.write_bytes(plan)
        layers, layers_from = self._read_back(trt, logger, plan, gpu, inputs)
        return BuildReport(
            version=trt.__version__,
            gpu=gpu,
            targets=self._targets(gpu),
            inputs=inputs,
            outputs=outputs,
            attentions=attentions,
            layers=tuple(layers),
            layers_from=layers_from,
            workspace_gb=workspace,
            notes=tuple(self.notes),
            parse_seconds=parsed_at - began,
            build_seconds=built_at - parsed_at,
            precision=weights_by_type(layers),
        )

    def _reusable(self, found: BuildReport | None, workspace: float | None) -> BuildReport | None:
        """An engine of the cache, unless it was built when far less memory was free."""
        had = None if found is None else found.workspace_gb
        if had is None or workspace is None or workspace < _FAR_MORE * had:
            return found
        self.notes.append(
            f"built anew: the engine in the cache had {had:.2f} GB of workspace, "
            f"{workspace:.2f} are free now"
        )
        return None

    def _note_workspace(self, limit: float | None, gpu: Gpu | None) -> None:
        """Memory that others hold may cost the fastest kernels."""
        asked = self.request.workspace_gb
        if limit is None or gpu is None:
            return
        if asked is not None and limit < asked:
            self.notes.append(
                f"workspace lowered from {asked:g} to {limit:.2f} GB: no more is free"
            )
        elif asked is None and gpu.free_bytes < gpu.total_bytes / 2:
            self.notes.append(
                f"workspace limited to {limit:.2f} GB, as {gpu.free_bytes / 1e9:.2f} of "
                f"{gpu.total_bytes / 1e9:.2f} GB are free: with more, faster kernels may be found"
            )

    def _use_timing_cache(self, trt: Any, config: Any, gpu: Gpu | None) -> Path | None:
        """Start from earlier timings; TensorRT-RTX times nothing while it builds."""
        if self.request.backend == "tensorrt-rtx" or gpu is None:
            return None
        default = cache.timing_cache_path(self.cache_folder, trt.__version__, gpu)
        path = self.timing_cache or default
        data, problem = cache.read_timing_cache(path)
        if problem:
            self.notes.append(problem)
        if not build.use_timing_cache(config, data):
            self.notes.append(
                f"{path}: TensorRT {trt.__version__} on {gpu.sm} refuses this timing cache; built "
                "without it, and written anew"
            )
        return path

    def _keep_timings(self, config: Any, path: Path | None) -> None:
        """A cache that cannot be written costs time, not the engine."""
        if path is None:
            return
        try:
            cache.write_timing_cache(path, build.timing_cache_bytes(config))
        except (SlimdeployError, OSError) as error:
            self.notes.append(f"timings were not kept: {error}")

    def _serialize(self, parsed: parse.Network, config: Any, logger: Any) -> bytes:
        try:
            plan = build.serialize(parsed, config)
        except MemoryError:
            logger.errors.append("std::bad_alloc")
            plan = None
        if not plan:
            raise explain(logger.errors, str(self.model), self.request.workspace_gb)
        return plan

    def _read_back(
        self, trt: Any, logger: Any, plan: bytes, gpu: Gpu | None, inputs: Sequence[TensorInfo]
    ) -> tuple[list[EngineLayer], str]:
        """The engine's kernels; where they cannot be read, the engine may be sound all the same."""
        names = [info.name for info in inputs]
        try:
            return build.engine_layers(trt, logger, plan, gpu, self.request, names)
        except InputError as error:
            self.notes.append(f"the engine's kernels were not read: {error}")
            return [], ""

    def _targets(self, gpu: Gpu | None) -> str:
        if self.request.backend == "tensorrt":
            assert gpu is not None
            return gpu.sm
        capabilities = self.request.compute_capabilities
        return ", ".join(capabilities) if capabilities else "every GPU that TensorRT-RTX knows"
