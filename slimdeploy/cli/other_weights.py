"""Where a dense file's weights are not those that a schedule was made for, or made."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.errors import SlimdeployError
from slimdeploy.files import sha256_file
from slimdeploy.manifest import Source, manifest_path, read_manifest
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
        refitted = schedule.slim_checkpoint
        source = _made_from(dense, "checkpoint")
        if refitted is None or (source and source.sha256 == refitted.sha256):
            return None
        return (
            f"{path} goes with the refitted weights {refitted.path}, which {dense} is not known to "
            f"have; `export --model {schedule.model.name} --checkpoint` with them writes the dense "
            "file that has them"
        )
    source = _made_from(dense, "schedule")
    if schedule.checkpoint is None or (source and source.sha256 == sha256_file(path)):
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


def _made_from(dense: Path, role: str) -> Source | None:
    """What the manifest of the dense file names in that role, if there is one."""
    if not manifest_path(dense).is_file():
        return None
    try:
        return read_manifest(dense).made_from.get(role)
    except SlimdeployError:
        return None
