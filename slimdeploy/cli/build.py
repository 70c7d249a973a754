"""`slimdeploy build`: an engine and its manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdeploy.cli.common import command_line, separated, show
from slimdeploy.console import progress_bar
from slimdeploy.engine.building.request import Backend, BuildRequest, HardwareCompatibility
from slimdeploy.engine.sessions import Provider
from slimdeploy.manifest import read_manifest

if TYPE_CHECKING:
    from slimdeploy.engine.building import Built


def build(
    model: Path,
    *,
    output: Path,
    backend: Backend = "tensorrt",
    keep_schedule: Path | None = None,
    min_batch: int | None = None,
    opt_batch: int | None = None,
    max_batch: int | None = None,
    compute_capability: tuple[str, ...] = (),
    provider: Provider = "cpu",
    workspace_gb: float | None = None,
    optimization_level: int | None = None,
    version_compatible: bool = False,
    hardware_compatible: HardwareCompatibility = "none",
    timing_cache: Path | None = None,
    cache_dir: Path | None = None,
    cache: bool = True,
    layers: Path | None = None,
    strict: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Build an engine, in a process of its own; the precision is the model's (see `quantize`).

    Args:
        model: an ONNX file.
        output: the engine, .plan (.onnx for onnxruntime); its manifest is written beside it.
        backend: tensorrt builds on the GPU that will run it; tensorrt-rtx compiles for RTX GPUs on
            any machine; onnxruntime writes the model as its optimiser leaves it.
        keep_schedule: the schedule that the engine's tokens are compared with (default: what the
            model's manifest says).
        min_batch: smallest batch (default 1). For models with a dynamic batch.
        opt_batch: the batch that it is tuned for (default: the largest).
        max_batch: largest batch (default 8).
        compute_capability: tensorrt-rtx: GPUs to compile for, as 8.6,8.9 (default: all).
        provider: onnxruntime: what runs it, with no fallback to another.
        workspace_gb: of the TensorRT backends: memory that kernels may use, in GB; lowered to what
            is free.
        optimization_level: of the TensorRT backends: 0 (quick) to 5 (thorough).
        version_compatible: tensorrt: newer versions load the engine too.
        hardware_compatible: tensorrt: other GPUs run the engine too.
        timing_cache: tensorrt: a file of measured kernels (default: one for each version and GPU).
        cache_dir: of the TensorRT backends: where engines and timings are kept (default: the user's
            cache folder).
        cache: take an engine from the cache that was built from the same, and keep a new one.
        layers: of the TensorRT backends: write the engine's kernels to this JSON file.
        strict: fail (exit 1) if the linters find anything, or the engine tells no kernels for them
            to look at; nothing is written then.
        dry_run: check everything that can be checked, and say what would be done.
        json: print the result as JSON.
    """
    from slimdeploy.engine.building import Caches, batch_profile, build_engine, model_inputs
    from slimdeploy.engine.building.places import check_places
    from slimdeploy.engine.building.rehearsal import rehearse

    asked = BuildRequest(
        backend=backend,
        provider=provider,
        workspace_gb=workspace_gb,
        optimization_level=optimization_level,
        compute_capabilities=separated(compute_capability),
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    caches = Caches(cache_dir, timing_cache, cache)
    check_places(model, output, backend, schedule=keep_schedule, layers=layers, caches=caches)
    inputs, sizes = model_inputs(model), (min_batch, opt_batch, max_batch)
    request = replace(asked, batch=batch_profile(str(model), inputs, sizes, backend))
    expected = _expected(keep_schedule)
    if dry_run:
        rehearse(model, request, expected, keep_schedule)
        show({"request": request.to_json()}, _plan(request, model, output), json)
        return
    with progress_bar() as bar:
        task = bar.add_task(f"building {output.name}", total=100)
        built = build_engine(
            model,
            request,
            output,
            expected=expected,
            expected_by=keep_schedule,
            caches=caches,
            command=command_line(),
            strict=strict,
            layers=layers,
            progress=lambda doing, share: bar.update(
                task, completed=round(100 * share), description=doing
            ),
        )
    show(_result(output, built), report_lines(output, built), json)


def _expected(keep_schedule: Path | None) -> list[int] | None:
    if keep_schedule is None:
        return None
    from slimdeploy.schedule import KeepSchedule

    return list(KeepSchedule.read(keep_schedule).counts)


def _plan(request: BuildRequest, model: Path, output: Path) -> str:
    batch = "" if request.batch is None else ", batch {}, {}, {}".format(*request.batch)
    return f"would build {model} with {request.backend}{batch}, and write {output}"


def _result(output: Path, built: Built) -> dict[str, Any]:
    return {
        "output": str(output),
        **built.record.model_dump(mode="json"),
        "precision": read_manifest(output).precision,
        "tokens_per_block": [block.queries for block in built.record.blocks],
    }


def report_lines(output: Path, built: Built) -> str:
    """What was built, for a person."""
    from slimdeploy.cli.inspect.engine import record_lines

    return "\n".join([f"{output}", *record_lines(built.record)])
