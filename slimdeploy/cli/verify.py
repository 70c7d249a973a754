"""`slimdeploy verify`: is this ONNX file what its schedule says?"""

from __future__ import annotations

from pathlib import Path

from slimdeploy.cli.common import load_arrays, load_onnx, open_images, show, slim_weights
from slimdeploy.cli.export import check_made_for, onnx_logits
from slimdeploy.errors import InputError, requires
from slimdeploy.files import sha256_file
from slimdeploy.manifest import Manifest
from slimdeploy.schedule import KeepSchedule


def verify(
    *,
    slim: Path,
    keep_schedule: Path,
    data_dir: Path,
    checkpoint: Path | None = None,
    split: str | None = None,
    images: int = 64,
    seed: int = 0,
    tolerance: float = 2e-5,
    json: bool = False,
) -> None:
    """Prove that a slim ONNX file computes the slim torch model on real images; exit 1 if not.

    Two independent ways to the same numbers: torch selects the kept tokens block by block, the
    file came from the dense graph by moving selections through it. The token counts of the file's
    blocks must be the schedule's as well.

    Args:
        slim: the ONNX file.
        keep_schedule: the schedule it was made with.
        data_dir: real images: an image folder, or one with train/val/test inside.
        checkpoint: the weights it was made with (default: those its manifest or schedule names).
        split: split of the data (test if there is one).
        images: how many images to compare.
        seed: of their draw.
        tolerance: largest difference allowed, as a share of the logits' scale.
        json: print the result as JSON.
    """
    with requires("train"):
        from slimdeploy.slim.accuracy import torch_logits
        from slimdeploy.slim.model import SlimVit
        from slimdeploy.slim.timm_models import load_scheduled
    from slimdeploy.graph import check_graph
    from slimdeploy.manifest import manifest_path, verify_manifest
    from slimdeploy.measure.parity import compare_outputs

    schedule = KeepSchedule.read(keep_schedule)
    manifest = verify_manifest(slim) if manifest_path(slim).is_file() else None
    if checkpoint is None and manifest is not None:
        checkpoint = _recorded_weights(slim, manifest)
    weights = slim_weights(schedule, keep_schedule, checkpoint)
    check_made_for(weights, schedule)
    model, preprocessing = load_scheduled(schedule, weights)
    folder = open_images(data_dir, split, "test", labelled=False).sample(images, seed)
    arrays = load_arrays(folder, preprocessing)
    keys = [schedule.model.tokens, *schedule.counts[:-1]]
    check_graph(load_onnx(slim), list(zip(schedule.counts, keys, strict=True)))
    reference = torch_logits(SlimVit(model, schedule.keep), arrays)
    parity = compare_outputs(reference, onnx_logits(slim, arrays), tolerance)
    result = {"slim": str(slim), "keep_schedule": str(keep_schedule), "parity": parity.to_json()}
    show(result, f"{slim}: {'PASSED' if parity.passed else 'FAILED'}: {parity}", json)
    parity.require(f"{slim}: against the slim torch model")


def _recorded_weights(slim: Path, manifest: Manifest) -> Path | None:
    """The weights that the file's manifest says it was made from; None if it names none.

    Raises:
        InputError: if they are gone or changed: other weights would give a false verdict.
    """
    recorded = manifest.made_from.get("checkpoint")
    if recorded is None:
        return None
    for path in (Path(recorded.path), slim.parent / Path(recorded.path).name):
        if path.is_file() and sha256_file(path) == recorded.sha256:
            return path
    raise InputError(
        f"{slim}: was made from {recorded.path}, which is gone or has changed; "
        "give it with --checkpoint"
    )
