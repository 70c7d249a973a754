"""`slimdeploy slim --model`: from a timm model and images to a schedule and refitted weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdeploy import __version__
from slimdeploy.cli.common import (
    command_line,
    load_arrays,
    open_images,
    weights_file,
    write_schedule,
)
from slimdeploy.console import note, told_steps
from slimdeploy.run_state import settings_of, work_folder
from slimdeploy.schedule import KeepSchedule, Provenance, WeightsFile

if TYPE_CHECKING:
    from slimdeploy.images import ImageFolder
    from slimdeploy.schedule import ModelGeometry
    from slimdeploy.slim.pipeline import SlimRequest


@dataclass(frozen=True)
class TimmModel:
    """What is slimmed, on which images, and where the results go.

    Attributes:
        checkpoint: the dense weights; None for timm's pretrained ones.
        kwargs: for `timm.create_model`.
        output: the schedule's file; `weights`, the refitted weights', lies beside it.
    """

    model_name: str
    checkpoint: Path | None
    kwargs: dict[str, int]
    sample: ImageFolder
    output: Path
    weights: Path


@dataclass(frozen=True)
class Slimming:
    """A way of slimming a timm model: to static positions, or to a choice per image.

    Attributes:
        request: a dataclass with all that decides the result beside model, weights and images.
        steps: from geometry and request, how many lines of progress `run` gives.
        run: from dense model, geometry, images, request, what a killed run had found, and a
            listener, what was made: it has `layers`, `model` (None if no weight changed), `shape`.
        told: from what was made, fields of the schedule that only this way has.
        provenance: and fields of its provenance.
    """

    request: Any
    steps: Callable[[ModelGeometry, Any], int]
    run: Callable[..., Any]
    told: Callable[[Any], dict[str, Any]]
    provenance: dict[str, Any]


def static(request: SlimRequest) -> Slimming:
    """Positions that are the same for every image.

    Raises:
        InputError: for a request that makes no sense.
    """
    from slimdeploy.slim.pipeline import slim_model, steps

    request.check()
    names = ("seed", "impact", "mac_reduction", "tolerance", "reconstruct")
    provenance = {name: getattr(request, name) for name in names}
    return Slimming(request, steps, slim_model, lambda made: {}, provenance)


def slimmed_schedule(source: TimmModel, way: Slimming) -> KeepSchedule:
    """Slim, and write schedule and weights; goes on where a killed run stopped.

    Raises:
        InputError: for a model, weights, images or a budget that do not go together.
    """
    import torch

    from slimdeploy.slim.checkpoint import weights_digest
    from slimdeploy.slim.search_state import SearchState
    from slimdeploy.slim.timm_models import describe, load_model
    from slimdeploy.store import open_store

    model, preprocessing = load_model(source.model_name, source.checkpoint, source.kwargs)
    geometry = describe(model, source.model_name, source.kwargs)
    data, checkpoint = source.sample.digest(), source.checkpoint
    dense = weights_file(checkpoint, source.output) if checkpoint else None
    settings = settings_of(
        way.request,
        model=geometry.model_dump(mode="json"),
        preprocessing=preprocessing.model_dump(mode="json"),
        data=data,
        weights=weights_digest(model),
        slimdeploy=__version__,
    )
    with SearchState(work_folder(source.output), settings) as saved:
        with (
            told_steps("slimming", way.steps(geometry, way.request)) as report,
            open_store() as store,
        ):
            images = torch.from_numpy(load_arrays(source.sample, preprocessing, store))
            made = way.run(model, geometry, images, way.request, saved, report)
            del images  # the disk may be needed for what is written now
        provenance = Provenance(
            slimdeploy=__version__,
            command=command_line(),
            shape=made.shape,
            images=len(source.sample),
            data=data,
            **way.provenance,
        )

        def make(slim_file: WeightsFile | None) -> KeepSchedule:
            return KeepSchedule(
                model=geometry,
                preprocessing=preprocessing,
                layers=tuple(made.layers),
                checkpoint=dense,
                slim_checkpoint=slim_file,
                provenance=provenance,
                **way.told(made),
            )

        named = {"name": source.model_name, "preprocessing": preprocessing}
        return write_schedule(source.output, source.weights, made.model, make, **named)


def draw_images(data_dir: Path, split: str | None, images: int, seed: int) -> ImageFolder:
    """The calibration images; says so where there are fewer than were asked for.

    No label is read; where images lie in class folders, each keeps its share of those drawn.
    """
    folder = open_images(data_dir, split, "train", labelled=False)
    sample = folder.sample(images, seed)
    if len(sample) < images:
        note(f"{folder.root}: only {len(sample)} images there, {images} were asked for")
    return sample
