"""`slimdeploy slim --dynamic`: a schedule whose patches each image chooses for itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy import __version__
from slimdeploy.cli.common import command_line, load_arrays, weights_file, write_schedule
from slimdeploy.cli.slim.flags import refuse
from slimdeploy.cli.slim.work import identity, work_folder
from slimdeploy.console import told_steps
from slimdeploy.errors import InputError
from slimdeploy.run_state import RunState, settings_of
from slimdeploy.schedule import KeepSchedule, Provenance, WeightsFile

if TYPE_CHECKING:
    from slimdeploy.dynamic import Scorer
    from slimdeploy.images import ImageFolder
    from slimdeploy.slim.dynamic import DynamicRequest
    from slimdeploy.slim.pipeline import SlimRequest


def dynamic_request(
    scorer: Scorer, request: SlimRequest, impact: str | None, step: int | None
) -> DynamicRequest:
    """The same budget and refit for a dynamic schedule.

    Raises:
        InputError: for flags of the search, which has nothing to do here, or no budget.
    """
    from slimdeploy.slim.dynamic import DynamicRequest
    from slimdeploy.slim.pipeline import SlimRequest

    looked_at = request.search_images
    refuse(
        "--dynamic, which searches no positions", impact=impact, tolerance=request.tolerance,
        step=step, search_images=None if looked_at == SlimRequest.search_images else looked_at,
    )  # fmt: skip
    if request.reconstruct == "gradient":
        raise InputError("--reconstruct gradient: does not go with --dynamic; use refit or none")
    if request.mac_reduction is None:
        raise InputError("--dynamic: give a budget with --mac-reduction, as 0.46")
    refit = request.refit if request.reconstruct == "refit" else None
    return DynamicRequest(scorer, request.mac_reduction, request.shape, request.multiple_of, refit)


def dynamic_schedule(
    request: DynamicRequest,
    seed: int,
    model_name: str,
    checkpoint: Path | None,
    kwargs: dict[str, int],
    sample: ImageFolder,
    output: Path,
    weights: Path,
) -> KeepSchedule:
    """Make the scorers, refit, and write schedule and weights; goes on where a run was killed.

    Args:
        seed: by which the images were drawn.
        kwargs: for `timm.create_model`.
        output: the schedule's file; `weights`, the refitted weights', lies beside it.
    """
    import torch

    from slimdeploy.slim.dynamic import dynamic_model, dynamic_steps
    from slimdeploy.slim.timm_models import describe, load_model
    from slimdeploy.store import open_store

    model, preprocessing = load_model(model_name, checkpoint, kwargs)
    geometry = describe(model, model_name, kwargs)
    data, own = sample.digest(), weights_file(checkpoint, output) if checkpoint else None
    settings = settings_of(request, **identity(geometry, data, own))
    with RunState(work_folder(output), settings) as saved:
        told = told_steps("slimming", dynamic_steps(geometry, request))
        with told as report, open_store() as store:
            images = torch.from_numpy(load_arrays(sample, preprocessing, store))
            made = dynamic_model(model, geometry, images, request, report, saved)
            del images  # the disk may be needed for what is written now

        def make(slim_file: WeightsFile | None) -> KeepSchedule:
            return KeepSchedule(
                model=geometry,
                preprocessing=preprocessing,
                layers=tuple(made.layers),
                dynamic=made.dynamic,
                checkpoint=own,
                slim_checkpoint=slim_file,
                provenance=Provenance(
                    slimdeploy=__version__,
                    command=command_line(),
                    seed=seed,
                    shape=made.shape,
                    mac_reduction=request.mac_reduction,
                    reconstruct="none" if request.refit is None else "refit",
                    images=len(sample),
                    data=data,
                ),
            )

        named = {"name": model_name, "preprocessing": preprocessing}
        return write_schedule(output, weights, made.model, make, **named)
