"""What `slimdeploy quantize` does, step by step; nothing is left behind unless all succeed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from slimdeploy.cli.common import command_line, show
from slimdeploy.cli.quantize.checks import Checks, check_output
from slimdeploy.cli.quantize.flags import check_method
from slimdeploy.cli.quantize.stage import Stage
from slimdeploy.console import note, progress_bar
from slimdeploy.errors import GateError, GraphError, InputError
from slimdeploy.files import disk_refusal, staged
from slimdeploy.graph.files.storage import replaced_model, write_model
from slimdeploy.manifest import Source, write_manifest
from slimdeploy.precision.options import PrecisionOptions
from slimdeploy.precision.overflow import Scan, nodes_to_keep, scan
from slimdeploy.precision.quantize import (
    QuantizedGraph,
    collect_ranges,
    opened,
    quantized_graph,
)
from slimdeploy.precision.ranges import Ranges

PACKAGES = ("onnx", "onnx-graphsurgeon", "onnxruntime", "numpy")
_SCANNED = 32


def run_stage(stage: Stage, as_json: bool) -> None:
    """Quantise, check, write, and say what was done.

    Raises:
        InputError, GraphError: for what cannot be quantised; the message says why.
        GateError: if a check fails; nothing is written then.
    """
    stage.check()
    with _named(stage.model):
        found = _scanned(stage) if stage.options.low == "fp16" else None
        options = _with_kept(stage, found)
        ranges = _ranges(stage, options)
        made = quantized_graph(stage.source, options, ranges)
    with replaced_model(stage.output) as temporary, _new_ranges(stage, ranges) as ranges_file:
        write_model(made.model, temporary)
        checks = check_output(stage, temporary)
        record = _record(stage, options, made, found, ranges, checks)
        _write_manifest(stage, record, temporary, ranges_file)
    for line in made.notes:
        note(line)
    show(record, _sentences(stage, record, made, checks), as_json)


@contextmanager
def _named(source: Path) -> Iterator[None]:
    """Put the name of the file before every message about it.

    What the disk refuses here are temporary files, or images.
    """
    try:
        yield
    except OSError as error:
        if (line := disk_refusal(error)) is None:
            raise
        raise InputError(f"{source}: {line}") from error
    except (GateError, GraphError, InputError) as error:
        text = str(error)
        raise type(error)(text if str(source) in text else f"{source}: {text}") from error


def _scanned(stage: Stage) -> Scan:
    """Look for overflow; of many images at a few, from all classes."""
    work = opened(stage.source, stage.options)
    images = stage.calibrating.spread(_SCANNED)
    with _told("looking for overflow") as tell:
        found = scan(work, images, stage.options.keep_float32, tell, stage.threads)
    if not stage.keep_overflows:
        found.require()
    return found


def _with_kept(stage: Stage, found: Scan | None) -> PrecisionOptions:
    """The options, with the nodes that overflow added to those that keep float32."""
    if found is None or not found.overflows:
        return stage.options
    for overflow in found.overflows:
        note(f"{overflow}, beyond float16: kept in float32")
    kept = nodes_to_keep(opened(stage.source, stage.options), found.overflows)
    return replace(stage.options, keep_float32=(*stage.options.keep_float32, *kept))


def _ranges(stage: Stage, options: PrecisionOptions) -> Ranges | None:
    if not options.quantised:
        return None
    if stage.ranges_path is not None:
        ranges = Ranges.read(stage.ranges_path)
        ranges.require_for(stage.model, stage.ranges_path)
        check_method(f"{stage.ranges_path}: method", ranges.method, options.precision)
        return ranges
    with _told("collecting ranges") as tell:
        return collect_ranges(
            stage.model,
            stage.source,
            options,
            stage.calibrating,
            stage.request,
            tell,
            stage.threads,
        )


@contextmanager
def _told(what: str) -> Iterator[Callable[[int, int], None]]:
    with progress_bar() as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _record(
    stage: Stage,
    options: PrecisionOptions,
    made: QuantizedGraph,
    found: Scan | None,
    ranges: Ranges | None,
    checks: Checks,
) -> dict[str, Any]:
    """What was done and found, for programs and the manifest."""
    images = ranges.images.model_dump() if ranges else None
    return {
        "output": str(stage.output),
        "precision": options.precision,
        "rest": options.rest if options.quantised else None,
        "read_back": made.state.to_json(),
        "quantised": list(made.quantised),
        "method": ranges.method if ranges else None,
        "smooth": ranges.smooth if ranges else None,
        "calibration": images,
        "overflow": None
        if found is None
        else {
            "images": "calibration" if stage.calibration else "seeded noise",
            "tensors": found.tensors,
            "largest": found.largest,
            "largest_tensor": found.largest_tensor,
            "kept_in_float32": [overflow.tensor for overflow in found.overflows],
        },
        **checks.to_json(),
        "notes": made.notes,
    }


@contextmanager
def _new_ranges(stage: Stage, ranges: Ranges | None) -> Iterator[Path | None]:
    """The file of new ranges, beside its place until the body succeeds; None if there are none."""
    if ranges is None or stage.ranges_path is not None:
        yield None
        return
    with staged(stage.output_ranges) as path:
        ranges.write(path)
        yield path


def _write_manifest(
    stage: Stage, record: dict[str, Any], written: Path, ranges_file: Path | None
) -> None:
    made_from = {"float32": Source.of(stage.model)}
    if stage.options.quantised:
        path = stage.ranges_path or stage.output_ranges
        made_from["ranges"] = Source.of(path, ranges_file)
    source = stage.manifest
    write_manifest(
        written,
        kind=f"{source.kind if source else 'onnx'}-{stage.options.precision}",
        made_from=made_from,
        command=command_line(),
        packages=PACKAGES,
        preprocessing=stage.preprocessing,
        tokens_per_block=source.tokens_per_block if source else (),
        results={"quantization": {k: v for k, v in record.items() if k != "output"}},
    )


def _sentences(stage: Stage, record: dict[str, Any], made: QuantizedGraph, checks: Checks) -> str:
    before, after = stage.model.stat().st_size, stage.output.stat().st_size
    lines = [
        f"wrote {stage.output}: {after / 1e6:.1f} MB, {before / 1e6:.1f} MB before",
        f"read back: {made.state}",
        *checks.sentences(),
    ]
    overflow = record["overflow"]
    if overflow is not None:
        lines.append(
            f"overflow: the largest of {overflow['tensors']} tensors in float16 is "
            f"{overflow['largest']:.4g} on {overflow['images']} images ('"
            f"{overflow['largest_tensor']}'; 65504 is the limit)"
        )
    return "\n".join(lines)
