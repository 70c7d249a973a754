"""What `slimdeploy quantize` does, step by step; nothing is left behind unless all succeed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from slimdeploy.cli.common import check_weights_safe, command_line, load_onnx, show
from slimdeploy.cli.preprocessing import Pixels
from slimdeploy.cli.quantize_checks import Checks, check_output
from slimdeploy.cli.quantize_flags import Gates
from slimdeploy.console import note, progress_bar
from slimdeploy.errors import GateError, GraphError, InputError
from slimdeploy.files import check_writable, disk_refusal, staged
from slimdeploy.graph.files.storage import replaced_model, write_model
from slimdeploy.graph.shapes import channels_last, runtime_inputs
from slimdeploy.manifest import Manifest, Source, manifest_path, verify_manifest, write_manifest
from slimdeploy.precision.calibration import ArrayCalibration, Calibration, open_calibration
from slimdeploy.precision.options import PrecisionOptions
from slimdeploy.precision.overflow import Scan, nodes_to_keep, scan
from slimdeploy.precision.quantize import (
    QuantizedGraph,
    RangeRequest,
    collect_ranges,
    opened,
    quantized_graph,
)
from slimdeploy.precision.ranges import Ranges
from slimdeploy.preprocessing import Preprocessing

PACKAGES = ("onnx", "onnx-graphsurgeon", "onnxruntime", "numpy")
_NOISE = 4
_SCANNED = 32


@dataclass(frozen=True)
class Stage:
    """The flags of `quantize`; see there."""

    model: Path
    options: PrecisionOptions
    keep_overflows: bool
    calibration: Path | None
    ranges_path: Path | None
    request: RangeRequest
    images: int
    seed: int
    split: str | None
    pixels: Pixels
    gates: Gates
    threads: int | None
    output: Path
    output_ranges: Path

    def check(self) -> None:
        """Refuse what cannot work, before any work.

        Raises:
            InputError: naming the flag, or the file that could not or should not be written.
        """
        quantised = self.options.quantised
        if self.output.suffix != ".onnx":
            raise InputError(f"--output {self.output}: name an .onnx file")
        if self.calibration is not None and self.ranges_path is not None:
            raise InputError("--calibration and --ranges: give one of them")
        if quantised and self.calibration is None and self.ranges_path is None:
            raise InputError(
                f"--precision {self.options.precision}: give --calibration (a folder or an .npz "
                "file of representative images) or --ranges"
            )
        if not quantised and self.ranges_path is not None:
            raise InputError(f"--ranges goes with int8 and fp8, not {self.options.precision}")
        if self.gates.max_top1_drop is not None and self.gates.data_dir is None:
            raise InputError("--max-top1-drop: give labelled images with --data-dir")
        if quantised and self.gates.max_logit_error is not None and self.calibration is None:
            raise InputError("--max-logit-error: is judged on calibration images, not on --ranges")
        read = [self.model, manifest_path(self.model), self.calibration, self.ranges_path]
        targets = [self.output, manifest_path(self.output)]
        targets += [self.output_ranges] if quantised and self.ranges_path is None else []
        for index, target in enumerate(targets):
            check_writable(target, *read, *targets[:index])
            check_weights_safe(target, self.model)

    @cached_property
    def source(self) -> onnx.ModelProto:
        """The float32 model."""
        return load_onnx(self.model)

    @cached_property
    def manifest(self) -> Manifest | None:
        """The model's own record, if there is one."""
        return verify_manifest(self.model) if manifest_path(self.model).is_file() else None

    @property
    def input_size(self) -> tuple[int, ...]:
        """Of one image, as the model takes it.

        Raises:
            InputError: if the model does not take images of one size.
        """
        inputs = runtime_inputs(self.source)
        dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim[1:]] if inputs else []
        if len(inputs) != 1 or len(dims) != 3 or not all(dims):
            raise InputError(f"{self.model}: takes no single image of a fixed size")
        return tuple(dims)

    @cached_property
    def preprocessing(self) -> Preprocessing | None:
        """As the flags say, else as the manifest does."""
        c, h, w = self.input_size
        if channels_last((c, h, w)):
            c, h, w = w, c, h
        given = self.pixels.stated((c, h, w))
        return given or (self.manifest.preprocessing if self.manifest else None)

    @cached_property
    def calibrating(self) -> Calibration:
        """The representative images; seeded noise if there are none."""
        if self.calibration is not None:
            return open_calibration(
                self.calibration,
                self.input_size,
                self.preprocessing,
                images=self.images,
                seed=self.seed,
                split=self.split,
            )
        noise = np.random.default_rng(self.seed).standard_normal((_NOISE, *self.input_size))
        return ArrayCalibration(noise.astype(np.float32), "seeded noise")


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
        found = scan(work, images, stage.options.keep_float32, tell)
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
        return ranges
    with _told("collecting ranges") as tell:
        return collect_ranges(
            stage.model, stage.source, options, stage.calibrating, stage.request, tell
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
