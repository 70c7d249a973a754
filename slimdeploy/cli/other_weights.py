"""Where a dense file's weights are not those that a schedule was made for, or made."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.errors import SlimdeployError
from slimdeploy.files import sha256_file
from slimdeploy.manifest import manifest_path, read_manifest
from slimdeploy.measure.onnx_file import model_digest
from slimdeploy.schedule import KeepSchedule


def weights_remark(schedule: KeepSchedule, path: Path, dense: Path) -> str | None:
    """A sentence for who takes the schedule's positions and the weights of `dense`.

    Args:
        path: the schedule's file.

    Returns:
        None if these weights are the ones meant, or if nothing tells.
    """
    if schedule.model.source == "timm":
        if schedule.slim_checkpoint is None:
            return None
        return (
            f"{path} names the refitted weights {schedule.slim_checkpoint.path}, and the file has "
            f"those of {dense}: export it without --onnx to have the refitted ones"
        )
    if schedule.checkpoint is None or _made_with(dense, path):
        return None
    if model_digest(dense) != schedule.checkpoint.sha256:
        return (
            f"{path} was made for other weights than those of {dense} (SHA-256 differs), and "
            "its tokens were chosen for those"
        )
    if (schedule.provenance.reconstruct if schedule.provenance else None) in (None, "none"):
        return None
    return (
        f"{path} goes with refitted weights, and {dense} has those from before the refit; "
        "`slim --output-checkpoint refitted.onnx` writes the dense file of after it"
    )


def _made_with(dense: Path, schedule: Path) -> bool:
    """Whether a manifest says that the dense file was written beside this very schedule."""
    if not manifest_path(dense).is_file():
        return False
    try:
        source = read_manifest(dense).made_from.get("schedule")
    except SlimdeployError:
        return False
    return source is not None and source.sha256 == sha256_file(schedule)
