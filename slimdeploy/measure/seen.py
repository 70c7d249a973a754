"""Whether a model is judged by images that its patches were chosen on.

Accuracy there is better than it is elsewhere: the search and the refit fit these images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from slimdeploy.errors import InputError
from slimdeploy.files import sha256_file
from slimdeploy.images import ImageFolder
from slimdeploy.manifest import Source, manifest_path, read_manifest
from slimdeploy.schedule import KeepSchedule

_FAR = 4
"""Artifacts between an engine and its schedule: engine, quantised file, slim file, and one."""


def images_seen(artifact: Path, folder: ImageFolder) -> tuple[int, Path] | None:
    """How many images of `folder` the schedule behind `artifact` was searched on.

    A schedule records its seed, how many images were drawn, and their digest: the draw is repeated,
    and has that digest only of the same files. Copies of them elsewhere are not recognised, nor is
    a schedule that has moved.

    Returns:
        Their number and the schedule's file; None if it saw none of them, or nothing tells.

    Raises:
        InputError: if an image cannot be read.
    """
    for path, schedule in _schedules(artifact, _FAR):
        made = schedule.provenance
        if made.images is None or made.data is None:
            continue
        drawn = folder.sample(made.images, made.seed)
        if len(drawn) == made.images and drawn.digest() == made.data:
            return len(drawn), path
    return None


def _schedules(artifact: Path, far: int) -> Iterator[tuple[Path, KeepSchedule]]:
    """The schedules that `artifact` was made from, as far as they are still there."""
    for role, source in _made_from(artifact).items():
        for path in (Path(source.path), artifact.parent / Path(source.path).name):
            if role == "schedule" and (schedule := _schedule(path, source)):
                yield path, schedule
                break
            if far > 1 and role != "schedule" and _is(path, source) and _made_from(path):
                yield from _schedules(path, far - 1)
                break


def _made_from(artifact: Path) -> dict[str, Source]:
    """What its manifest names, if it has one; other JSON beside it is not for us to judge."""
    if not manifest_path(artifact).is_file():
        return {}
    try:
        return read_manifest(artifact).made_from
    except InputError:
        return {}


def _schedule(path: Path, source: Source) -> KeepSchedule | None:
    """The schedule at `path`; None where it is another file, or a manifest with the counts only."""
    if not _is(path, source):
        return None
    try:
        return KeepSchedule.read(path)
    except InputError:
        return None


def _is(path: Path, source: Source) -> bool:
    return path.is_file() and sha256_file(path) == source.sha256
