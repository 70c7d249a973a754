"""Whether a model is judged by images that its patches were chosen on.

Accuracy there is better than it is elsewhere: the search and the refit fit these images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import get_args

from slimdeploy.errors import InputError
from slimdeploy.images import ImageFolder
from slimdeploy.manifest import Source, manifest_path, read_manifest
from slimdeploy.positions import Positions
from slimdeploy.schedule import KeepSchedule

_CHAIN = ("onnx", "float32")
"""Roles of what an engine or a quantised file was made from, which has a manifest of its own."""
_FAR = 4
"""Artifacts between an engine and its schedule: engine, quantised file, slim file, and one."""


def images_seen(artifact: Path, folder: ImageFolder) -> tuple[int, Path] | None:
    """How many images of `folder` the schedule behind `artifact` was searched on, or refitted.

    A schedule records its seed, how many images were drawn, and their digest: the draw is repeated,
    and has that digest only of the same files. Copies of them elsewhere are not recognised, nor is
    a schedule that has moved without what was made from it.

    Returns:
        Their number and the schedule's file; None if nothing tells.

    Raises:
        InputError: if an image cannot be read.
    """
    nearest = next(_schedules(artifact, _FAR), None)
    if nearest is None:
        return None
    path, schedule = nearest
    made = schedule.provenance
    if made.images is None or made.data is None or not _looked(schedule):
        return 0, path
    drawn = folder.sample(made.images, made.seed)
    same = len(drawn) == made.images and drawn.digest() == made.data
    return len(drawn) if same else 0, path


def _looked(schedule: KeepSchedule) -> bool:
    """Whether anything was decided by what the images show."""
    made, dynamic = schedule.provenance, schedule.dynamic
    if made.reconstruct not in (None, "none"):
        return True
    if dynamic is not None:
        return dynamic.scorer == "predictor"
    return made.impact not in (None, *get_args(Positions))


def _schedules(artifact: Path, far: int) -> Iterator[tuple[Path, KeepSchedule]]:
    """The schedules that `artifact` was made from, as far as they are still there."""
    for role, source in _made_from(artifact).items():
        if role == "schedule" and (path := source.find(artifact)):
            yield from _read(path)
        elif far > 1 and role in _CHAIN and (path := source.find(artifact)):
            yield from _schedules(path, far - 1)


def _made_from(artifact: Path) -> dict[str, Source]:
    """What its manifest names, if it has one; other JSON beside it is not for us to judge."""
    if not manifest_path(artifact).is_file():
        return {}
    try:
        return read_manifest(artifact).made_from
    except InputError:
        return {}


def _read(path: Path) -> Iterator[tuple[Path, KeepSchedule]]:
    """The schedule at `path`; none where it is a manifest, which has the counts only."""
    with suppress(InputError):
        yield path, KeepSchedule.read(path)
