"""Where a killed `slimdeploy slim` left what it had found, and which run may go on from there."""

from __future__ import annotations

from pathlib import Path

from slimdeploy import __version__
from slimdeploy.schedule import ModelGeometry, WeightsFile


def work_folder(output: Path) -> Path:
    """The folder of an unfinished run, beside the file that it is to write."""
    return output.with_name(f".{output.name}.work")


def identity(geometry: ModelGeometry, data: str, weights: WeightsFile | None) -> dict[str, object]:
    """What decides the result of slimming a timm model, beside the request.

    Args:
        data: digest of the images.
        weights: the dense model's; None for timm's pretrained ones.
    """
    return {
        "model": geometry.model_dump(mode="json"),
        "data": data,
        "weights": weights.sha256 if weights else None,
        "slimdeploy": __version__,
    }
