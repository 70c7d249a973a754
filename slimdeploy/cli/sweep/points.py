"""What `slimdeploy sweep` is asked for: the points, and the settings that all of them share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from slimdeploy.counts import ShapeChoice
from slimdeploy.dynamic import PerImage
from slimdeploy.errors import InputError, one_line
from slimdeploy.files import check_writable, read_bytes, write_text
from slimdeploy.slim.choices import ImpactName, Reconstruct, Strength

T = TypeVar("T", int, float, str)

MARK = "settings.json"


@dataclass(frozen=True)
class Point:
    """One slim model to make."""

    impact: str
    wanted: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.impact}-{self.wanted:g}-seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.impact}, MAC reduction {self.wanted:g}, seed {self.seed}"


@dataclass(frozen=True)
class SharedFlags:
    """The flags of `slim` that all points share; see there."""

    data_dir: Path
    split: str | None
    shape: ShapeChoice
    multiple_of: int
    reconstruct: Reconstruct
    images: int
    search_images: int
    ridge: Strength | None

    def to_json(self) -> dict[str, Any]:
        """What a point depends on; the images themselves are told apart by their digest."""
        return {
            "shape": self.shape,
            "multiple_of": self.multiple_of,
            "reconstruct": self.reconstruct,
            "images": self.images,
            "search_images": self.search_images,
            "ridge": "default" if self.ridge is None else self.ridge,
        }


@dataclass(frozen=True)
class Timing:
    """How dense and slim are timed."""

    batch_sizes: tuple[int, ...]
    threads: int
    rounds: int

    def to_json(self) -> dict[str, Any]:
        return {
            "batch_sizes": list(self.batch_sizes),
            "threads": self.threads,
            "rounds": self.rounds,
        }


def listed(flag: str, words: str, kind: Callable[[str], T], example: str) -> tuple[T, ...]:
    """Values with commas between, none twice.

    Raises:
        InputError: naming the flag.
    """
    try:
        values = tuple(kind(word.strip()) for word in words.split(",") if word.strip())
    except ValueError:
        values = ()
    if not values:
        raise InputError(f"{flag} '{words}': give one or more with commas between, as {example}")
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"{flag} {words}: {value} is there twice")
    return values


def points_of(
    reductions: Sequence[float], impacts: Sequence[str], seeds: Sequence[int]
) -> list[Point]:
    """All of them, a whole front for the first seed before the next.

    Raises:
        InputError: for a budget or seed that makes no sense, or an unknown impact.
    """
    for reduction in reductions:
        if not 0 < reduction < 1:
            raise InputError(
                f"--mac-reduction {reduction:g}: each must be above 0 and below 1, as 0.46"
            )
    known = (*get_args(ImpactName), *get_args(PerImage))
    for impact in impacts:
        if impact not in known:
            raise InputError(f"--impact {impact}: give one of {', '.join(known)}")
    for seed in seeds:
        if seed < 0:
            raise InputError(f"--seeds {seed}: must be at least 0")
    return [
        Point(impact, reduction, seed)
        for seed in seeds
        for impact in impacts
        for reduction in reductions
    ]


def open_folder(output: Path, settings: dict[str, Any]) -> None:
    """Take the sweep's folder: a new one, or one of the same settings, to go on in.

    Raises:
        InputError: if it is a file, holds something else, or a sweep of other settings.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; --output names a folder")
    mark = output / MARK
    if mark.is_file() and [*output.iterdir()] != [mark]:  # a run that failed early left it alone
        _check_same(mark, settings)
    elif not mark.is_file() and output.is_dir() and any(output.iterdir()):
        raise InputError(
            f"{output}: is not empty and holds no sweep; name a new folder with --output"
        )
    check_writable(mark)
    write_text(mark, json.dumps(settings, indent=2) + "\n")


def _check_same(mark: Path, settings: dict[str, Any]) -> None:
    try:
        before = dict(json.loads(read_bytes(mark)))
    except (ValueError, TypeError) as error:
        reason = one_line(error, 80)
        raise InputError(f"{mark}: not a sweep's settings ({reason}); remove the folder") from error
    wanted = json.loads(json.dumps(settings))
    for name in {**wanted, **before}:
        if before.get(name) != wanted.get(name):
            raise InputError(
                f"{mark}: {name}: this folder's sweep was made with {_short(before.get(name))}, "
                f"now it is {_short(wanted.get(name))}; choose another --output, or remove the "
                "folder"
            )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
