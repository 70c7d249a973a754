"""What `slimdeploy verify --dense` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy.cli.common import open_images
from slimdeploy.errors import InputError
from slimdeploy.manifest import manifest_path, read_manifest
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule

if TYPE_CHECKING:
    from slimdeploy.graph.dynamic import ChoicePlan
    from slimdeploy.images import ImageFolder


@dataclass(frozen=True)
class Check:
    """What is verified and how; the fields are the arguments of `slimdeploy verify`."""

    slim: Path
    dense: Path
    keep_schedule: Path | None
    data_dir: Path | None
    split: str | None
    images: int
    seed: int
    tolerance: float | None
    per_block: bool
    pool_kept: bool
    threads: int | None
    output: Path
    notes: list[str] = field(default_factory=list)

    @cached_property
    def schedule(self) -> KeepSchedule | None:
        """The schedule, if there is one."""
        return None if self.keep_schedule is None else KeepSchedule.read(self.keep_schedule)

    @cached_property
    def plan(self) -> ChoicePlan | None:
        """What a dynamic schedule asks for; None for a static one, or none."""
        from slimdeploy.graph.dynamic import ChoicePlan

        return None if self.schedule is None else ChoicePlan.of(self.schedule)

    @cached_property
    def folder(self) -> ImageFolder | None:
        """The real images to run on, if there are any."""
        if self.data_dir is None:
            return None
        folder = open_images(self.data_dir, self.split, "test", labelled=False)
        return folder.sample(self.images, self.seed)

    @property
    def files(self) -> dict[str, Path]:
        """Every file that the verdict depends on, by role."""
        named = {"dense": self.dense, "slim": self.slim, "keep_schedule": self.keep_schedule}
        return {role: path for role, path in named.items() if path is not None}

    def preprocessing(self) -> Preprocessing:
        """What real images go through.

        Raises:
            InputError: if neither the schedule nor a manifest records it.
        """
        if self.schedule is not None and self.schedule.preprocessing is not None:
            return self.schedule.preprocessing
        for path in (self.slim, self.dense):
            if manifest_path(path).is_file() and (found := read_manifest(path).preprocessing):
                return found
        raise InputError(
            "--data-dir: neither the schedule nor a manifest beside the files records the "
            "preprocessing of images; verify without it"
        )
