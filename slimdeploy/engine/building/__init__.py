"""`build`: an ONNX file as an engine, in a process of its own, and what came of it.

Code map:
    request, places    what is asked for, checked; the batch profile; files read and written
    rehearsal          what a dry run can find
    child, worker      the two ends of the build process
    with_tensorrt      one build by TensorRT or TensorRT-RTX; with_onnxruntime by ONNX Runtime
    cache              engines and timings that were computed before
    failures           what a builder's log means
    gates              what an engine must show before it is written
    report, record     what was read back; what the manifest keeps of it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slimdeploy.engine.building.cache import Caches, default_folder
from slimdeploy.engine.building.child import orderly_end, run_build
from slimdeploy.engine.building.gates import check_schedule, require_clean
from slimdeploy.engine.building.places import check_places
from slimdeploy.engine.building.record import BuildRecord
from slimdeploy.engine.building.rehearsal import awaited_tokens
from slimdeploy.engine.building.report import BuildReport
from slimdeploy.engine.building.request import BuildRequest, batch_profile
from slimdeploy.engine.graph_facts import check_weights, graph_facts
from slimdeploy.engine.lint import Finding, lint
from slimdeploy.engine.protocol import TensorInfo
from slimdeploy.engine.tokens import engine_tokens, of_blocks
from slimdeploy.files import disk_errors, sha256_file, staged, write_text
from slimdeploy.manifest import Manifest, manifest_path, verify_manifest, write_manifest
from slimdeploy.measure.onnx_file import external_files, load_structure

__all__ = ["BuildRecord", "BuildRequest", "Built", "Caches", "batch_profile", "build_engine"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Built:
    """A finished build: what was read back, the manifest's record of it, the linters' findings."""

    report: BuildReport
    record: BuildRecord
    findings: list[Finding]


def model_inputs(model: Path) -> tuple[TensorInfo, ...]:
    """Inputs of an ONNX file, which must be whole, with its weights, all of them numbers.

    Raises:
        InputError: naming what is missing or damaged.
        GateError: if it is not the file that the manifest beside it describes.
    """
    from slimdeploy.graph.shapes import runtime_inputs

    if manifest_path(model).is_file():
        verify_manifest(model)
    check_weights(model)
    return tuple(_input_info(value) for value in runtime_inputs(load_structure(model)))


def _input_info(value: Any) -> TensorInfo:
    dims = value.type.tensor_type.shape.dim
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    return TensorInfo(value.name, shape, str(value.type.tensor_type.elem_type))


def build_engine(
    model: Path,
    request: BuildRequest,
    output: Path,
    *,
    expected: Sequence[int] | None = None,
    expected_by: Path | None = None,
    caches: Caches | None = None,
    command: Sequence[str] = (),
    strict: bool = False,
    layers: Path | None = None,
    progress: Progress = lambda doing, share: None,
) -> Built:
    """Build `model` and write the engine to `output`, with a manifest beside it.

    Args:
        model: an ONNX file; `model_inputs` has approved of it.
        expected: the tokens that each block must compute; None takes them from the model's
            manifest, if it has one.
        expected_by: the file that says so.
        strict: accept no finding of the linters, and no engine that does not tell its kernels.
        layers: also write the engine's kernels to this JSON file.

    Raises:
        SlimdeployError: in words; nothing is written then.
    """
    caches = caches or Caches()
    check_places(model, output, request.backend, schedule=expected_by, layers=layers, caches=caches)
    source = verify_manifest(model) if manifest_path(model).is_file() else None
    asked = expected is not None
    expected, expected_by = awaited_tokens(model, expected, expected_by)
    with (
        orderly_end(),
        disk_errors(output),
        TemporaryDirectory(dir=output.parent, prefix=".build-") as name,
    ):
        folder = Path(name)
        task = _task(model, request, output, caches)
        report = run_build(folder, task, progress)
        report = replace(report, attentions=of_blocks(model, report.attentions, expected))
        tokens = engine_tokens(report.layers, report.attentions)
        counts = [block.queries for block in tokens or report.attentions]
        notes = check_schedule(model, counts, expected, expected_by, asked)
        report = replace(report, notes=(*report.notes, *notes))
        findings = lint(report.layers, report.attentions, graph_facts(model))
        if strict:
            require_clean(output, report, findings)
        record = BuildRecord.of(report, request, tokens, findings)
        with ExitStack() as files:
            target = files.enter_context(staged(output))
            _move_parts(folder, target)
            _describe(target, model, source, expected_by, record, counts, command, report)
            if layers is not None:
                _write_layers(files.enter_context(staged(layers)), report)
    return Built(report, record, findings)


def _task(model: Path, request: BuildRequest, output: Path, caches: Caches) -> dict[str, Any]:
    """What the build process is told; relative paths would depend on where it runs."""
    parts = external_files(load_structure(model))
    sha256 = {name: sha256_file(model.parent / name) for name in parts}
    return {
        "model": str(model.resolve()),
        "sha256": {"": sha256_file(model), **sha256},
        "request": request.to_json(),
        "target": output.name,
        "timing_cache": str(caches.timing.resolve()) if caches.timing else None,
        "cache_folder": _cache_folder(request, caches),
        "use_cache": caches.engines,
    }


def _cache_folder(request: BuildRequest, caches: Caches) -> str | None:
    """None for ONNX Runtime, which has no use for one."""
    if request.backend == "onnxruntime":
        return None
    return str((caches.folder or default_folder()).resolve())


def _move_parts(folder: Path, target: Path) -> None:
    """The engine, and a file of weights that an optimised model may have beside it."""
    for path in list(folder.iterdir()):  # a name may hold what glob takes for a pattern
        if path.name.startswith(target.name):
            path.rename(target.with_name(path.name))


def _write_layers(path: Path, report: BuildReport) -> None:
    rows = [layer.to_json() for layer in report.layers]
    write_text(path, json.dumps(rows, indent=1) + "\n")


_KINDS = {
    "onnxruntime": "onnxruntime-model",
    "tensorrt": "tensorrt-engine",
    "tensorrt-rtx": "tensorrt-rtx-engine",
}
_PACKAGES = ("onnx", "numpy", "onnxruntime", "tensorrt", "tensorrt_rtx")


def _describe(
    target: Path,
    model: Path,
    source: Manifest | None,
    expected_by: Path | None,
    record: BuildRecord,
    counts: Sequence[int],
    command: Sequence[str],
    report: BuildReport,
) -> None:
    made_from = {"onnx": model}
    if expected_by is not None and expected_by != manifest_path(model):
        made_from["schedule"] = expected_by
    write_manifest(
        target,
        kind=_KINDS[record.backend],
        made_from=made_from,
        command=command,
        packages=_PACKAGES,
        preprocessing=source.preprocessing if source is not None else None,
        tokens_per_block=counts,
        results={"build": record.model_dump(mode="json")},
        precision=report.precision or None,
    )
