"""`slimdeploy export` from a timm model: torch writes the dense graph and judges the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.cli.common import command_line, onnx_logits, slim_weights
from slimdeploy.cli.dynamic_check import replayed_parity
from slimdeploy.cli.export.stage import PACKAGES, Stage
from slimdeploy.errors import InputError, requires
from slimdeploy.graph.files.storage import replaced_model, write_model
from slimdeploy.graph.options import GraphOptions
from slimdeploy.manifest import write_manifest
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule
from slimdeploy.slim.choices import Exporter


@dataclass(frozen=True)
class TorchExport:
    """The model, its weights, and how torch writes its graph."""

    model: str | None
    checkpoint: Path | None
    exporter: Exporter
    opset: int
    static_batch: bool
    fused_attention: bool
    img_size: int | None


@dataclass(frozen=True)
class _Source:
    """The torch model, and where it came from."""

    model: Any
    preprocessing: Preprocessing
    made_from: dict[str, Path]
    name: str


def export_timm(stage: Stage, how: TorchExport, output: Path) -> dict[str, Any]:
    """Make `output` from a timm model and its weights; the result as a record.

    Raises:
        InputError: if schedule, weights and model do not fit together.
        GateError: if the result differs from torch; nothing is written then.
        MissingError: if torch or timm is not installed.
    """
    with requires("train"):
        from slimdeploy.slim import timm_models  # noqa: F401
        from slimdeploy.slim.accuracy import torch_logits
        from slimdeploy.slim.dense_onnx import OnnxOptions, export_dense
        from slimdeploy.slim.dynamic import slim_of
    from slimdeploy.measure.parity import compare_outputs

    written = OnnxOptions(how.exporter, how.opset, not how.static_batch, how.fused_attention)
    source = _source(stage, how)
    images = stage.images(source.preprocessing, source.preprocessing.input_size)
    dense = export_dense(source.model, written)
    as_it_is = stage.kind == "dense" and stage.options == GraphOptions()
    made = None if as_it_is else stage.apply(dense, source.name)
    reference = source.model if stage.schedule is None else slim_of(source.model, stage.schedule)
    notes = [] if made is None else list(made.notes)
    parity = None
    with replaced_model(output) as path:
        write_model(dense if made is None else made.model, path)
        if stage.options.prefix_blocks is None:
            allowed = stage.allowed(dense)
            if stage.plan is None:
                logits = onnx_logits(path, images)
                parity = compare_outputs(torch_logits(reference, images), logits, allowed)
            else:
                parity = replayed_parity(reference, path, stage.plan, images, allowed)
            parity.require(f"{output}: against the {stage.kind} torch model; nothing was written")
        else:
            notes.append("a probe ends inside the model: its numbers were not compared")
        counts = [] if made is None else [block.queries for block in made.blocks]
        record = None if parity is None else parity.to_json()
        write_manifest(
            path,
            kind=f"{stage.kind}-onnx",
            made_from=source.made_from,
            command=command_line(),
            packages=("torch", "timm", "onnxscript", *PACKAGES),
            preprocessing=source.preprocessing,
            tokens_per_block=counts,
            results={} if record is None else {"parity": record},
        )
    return {
        "output": str(output),
        "kind": stage.kind,
        "source": "timm",
        "tokens_per_block": counts,
        "parity": record,
        "notes": notes,
    }


def _source(stage: Stage, how: TorchExport) -> _Source:
    from slimdeploy.slim.timm_models import load_model, load_scheduled

    schedule, schedule_path = stage.schedule, stage.schedule_path
    if schedule is None or schedule_path is None:
        if how.model is None:
            raise InputError(
                "give --keep-schedule for the slim model, --onnx FILE to work on an ONNX file, or "
                "--model for a timm model"
            )
        kwargs = {} if how.img_size is None else {"img_size": how.img_size}
        model, preprocessing = load_model(how.model, how.checkpoint, kwargs)
        made_from = {"checkpoint": how.checkpoint} if how.checkpoint else {}
        return _Source(model, preprocessing, made_from, how.model)
    if how.img_size is not None:
        raise InputError("--img-size: the keep schedule fixes the image size")
    if how.model is not None and how.model != schedule.model.name:
        raise InputError(
            f"{schedule_path}: is for {schedule.model.name}, not for --model {how.model}"
        )
    weights = slim_weights(schedule, schedule_path, how.checkpoint)
    check_made_for(weights, schedule)
    model, preprocessing = load_scheduled(schedule, weights)
    made_from = {"schedule": schedule_path, **({"checkpoint": weights} if weights else {})}
    return _Source(model, preprocessing, made_from, schedule.model.name)


def check_made_for(weights: Path | None, schedule: KeepSchedule) -> None:
    """Refuse weights that were fine-tuned for another schedule."""
    from slimdeploy.slim.checkpoint import Checkpoint

    if weights is None:
        return
    digest = Checkpoint.read(weights).metadata.get("keep_schedule", schedule.digest)
    if digest != schedule.digest:
        raise InputError(
            f"{weights}: was fine-tuned for another keep schedule; give the one it was made with"
        )
