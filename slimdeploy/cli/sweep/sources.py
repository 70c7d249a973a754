"""Where the slim models of a sweep come from, whatever kind of model it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from slimdeploy.cli.export.stage import Stage
from slimdeploy.cli.sweep.points import Point, SharedFlags
from slimdeploy.counts import Shape, counts_by_image, counts_for_budget, reachable_shapes
from slimdeploy.dynamic import per_image
from slimdeploy.errors import InputError
from slimdeploy.graph.options import GraphOptions
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule, ModelGeometry

VERIFIED_IMAGES = 16


@dataclass(frozen=True)
class Made:
    """A slim model that was made and proven.

    Attributes:
        slim: its ONNX file.
        schedule: what it keeps.
        parity: largest difference of an output that the proof found, as a share of its scale.
        files: by role, in the point's folder.
    """

    slim: Path
    schedule: KeepSchedule
    parity: float
    files: dict[str, Path]


class Source(Protocol):
    """The dense model, and how slim ones are made of it."""

    @property
    def shared(self) -> SharedFlags:
        """What all slim models of it have in common."""
        ...

    @property
    def geometry(self) -> ModelGeometry: ...

    @property
    def preprocessing(self) -> Preprocessing: ...

    @property
    def inputs(self) -> list[Path]:
        """The files it is read from."""
        ...

    @property
    def batch(self) -> int | None:
        """Images a call, where the dense file fixes it."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this source from others: its weights and how graphs are written."""
        ...

    def check_point(self, point: Point) -> None:
        """Raises `InputError` for an impact or flags that this source cannot make it with."""
        ...

    def dense(self, folder: Path) -> Path:
        """The dense ONNX file to compare with; written into `folder` if there is none."""
        ...

    def make(self, point: Point, folder: Path) -> Made:
        """Slim, export and prove one point; its files go into `folder`."""
        ...


def check_points(source: Source, points: Sequence[Point]) -> None:
    """Find out now what would stop the sweep after hours of work.

    Raises:
        InputError: for a budget that no counts reach, or what the source cannot make.
    """
    for point in points:
        try:
            source.check_point(point)
        except InputError as error:
            if per_image(point.impact) is None:
                raise
            # It speaks of --dynamic, as `slim` calls what is an --impact here.
            raise InputError(f"--impact {point.impact}: {error}") from error
        counts = partial(_counts, source, point)
        if source.shared.shape == "auto":
            reachable_shapes(counts)
        else:
            counts(source.shared.shape)


def _counts(source: Source, point: Point, shape: Shape) -> list[int]:
    geometry, multiple = source.geometry, source.shared.multiple_of
    if way := per_image(point.impact):
        return counts_by_image(way, geometry, point.wanted, shape, multiple)
    return counts_for_budget(geometry, point.wanted, shape, multiple)


def check_batch(source: Source, sizes: Sequence[int]) -> None:
    """Find out now what would stop the sweep when its first point is timed.

    Raises:
        InputError: for a batch size that a dense file of a fixed one does not take.
    """
    for size in sizes:
        if source.batch not in (None, size):
            raise InputError(
                f"--batch-size {size}: {source.inputs[0].name} takes {source.batch} a call; give "
                f"--batch-size {source.batch}"
            )


def export_stage(schedule: Path | None, options: GraphOptions) -> Stage:
    """`export` by a schedule, or of the dense model, checked on noise."""
    return Stage(
        schedule_path=schedule,
        lossless=False,
        options=options,
        data_dir=None,
        split=None,
        tolerance=None,
        check=True,
    )
