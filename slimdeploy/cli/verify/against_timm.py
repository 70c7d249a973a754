"""`slimdeploy verify` against the timm model in torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy.cli.common import (
    load_arrays,
    load_onnx,
    onnx_logits,
    open_images,
    require_timm,
    show,
    slim_weights,
)
from slimdeploy.cli.dynamic_check import replayed_parity
from slimdeploy.cli.export.from_timm import check_made_for
from slimdeploy.console import note
from slimdeploy.errors import GateError, GraphError, InputError, requires
from slimdeploy.files import sha256_file
from slimdeploy.manifest import Manifest
from slimdeploy.schedule import KeepSchedule, WeightsFile

if TYPE_CHECKING:
    from slimdeploy.measure.parity import Parity


def verify_torch(
    slim: Path,
    keep_schedule: Path,
    data_dir: Path,
    checkpoint: Path | None,
    split: str | None,
    images: int,
    seed: int,
    tolerance: float,
    json: bool,
) -> None:
    """Compare logits on real images with the torch model that selects tokens block by block.

    The arguments are those of `slimdeploy verify`.

    Raises:
        GateError: if logits or token counts differ, or the file is not the one its manifest
            describes.
        InputError: if something cannot be read.
    """
    parity = torch_parity(slim, keep_schedule, data_dir, checkpoint, split, images, seed, tolerance)
    result = {"slim": str(slim), "keep_schedule": str(keep_schedule), "parity": parity.to_json()}
    show(result, f"{slim}: {'PASSED' if parity.passed else 'FAILED'}: {parity}", json)
    parity.require(f"{slim}: against the slim torch model")


def torch_parity(
    slim: Path,
    keep_schedule: Path,
    data_dir: Path,
    checkpoint: Path | None,
    split: str | None,
    images: int,
    seed: int,
    tolerance: float,
) -> Parity:
    """How far the file's logits are from the slim torch model's, on real images.

    Raises:
        GateError: if the file is not the one its manifest describes, or its token counts are not
            the schedule's.
        InputError: as `verify_torch`.
    """
    schedule = KeepSchedule.read(keep_schedule)
    require_timm(schedule, keep_schedule, "give that file with --dense")
    with requires("train"):
        from slimdeploy.slim.accuracy import torch_logits
        from slimdeploy.slim.dynamic import slim_of
        from slimdeploy.slim.timm_models import load_scheduled
    from slimdeploy.graph import check_graph
    from slimdeploy.graph.dynamic import ChoicePlan
    from slimdeploy.manifest import manifest_path, verify_manifest
    from slimdeploy.measure.parity import compare_outputs

    manifest = verify_manifest(slim) if manifest_path(slim).is_file() else None
    if checkpoint is None and manifest is not None:
        named = schedule.slim_checkpoint or schedule.checkpoint
        checkpoint = _recorded_weights(slim, manifest, named, keep_schedule)
        if checkpoint and named and sha256_file(checkpoint) != named.sha256:
            others = f"{keep_schedule} names others"
            note(f"{slim}: compared with {checkpoint}, as its manifest says; {others}")
    weights = slim_weights(schedule, keep_schedule, checkpoint)
    check_made_for(weights, schedule)
    model, preprocessing = load_scheduled(schedule, weights)
    folder = open_images(data_dir, split, "test", labelled=False).sample(images, seed)
    arrays = load_arrays(folder, preprocessing)
    plan = ChoicePlan.of(schedule)
    keys = plan.keys if plan else [schedule.model.tokens, *schedule.counts[:-1]]
    counts = list(zip(schedule.counts, keys, strict=True))
    try:
        check_graph(load_onnx(slim), counts, added=plan.operators if plan else None)
    except GraphError as error:
        raise GateError(f"{slim}: against {keep_schedule}: {error}") from error
    reference = slim_of(model, schedule)
    if plan is not None:
        return replayed_parity(reference, slim, plan, arrays, tolerance)
    return compare_outputs(torch_logits(reference, arrays), onnx_logits(slim, arrays), tolerance)


def _recorded_weights(
    slim: Path, manifest: Manifest, named: WeightsFile | None, keep_schedule: Path
) -> Path | None:
    """The weights that the file's manifest says it was made from; None if it names none.

    Args:
        named: what the schedule names, which may have moved with it.

    Raises:
        InputError: if they are gone or changed: other weights would give a false verdict.
    """
    recorded = manifest.made_from.get("checkpoint")
    if recorded is None:
        return None
    if path := recorded.find(slim):
        return path
    if named is not None and recorded.is_at(moved := keep_schedule.parent / named.path):
        return moved
    raise InputError(
        f"{slim}: was made from {recorded.path}, which is gone or has changed; "
        "give it with --checkpoint"
    )
