"""`slimdeploy slim --dynamic`: a schedule whose patches each image chooses for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slimdeploy.cli.slim.flags import NO_POSITIONS, refuse
from slimdeploy.cli.slim.from_timm import Slimming
from slimdeploy.errors import InputError
from slimdeploy.slim.choices import SEARCH_IMAGES

if TYPE_CHECKING:
    from slimdeploy.dynamic import PerImage
    from slimdeploy.slim.dynamic import DynamicRequest
    from slimdeploy.slim.pipeline import SlimRequest


def dynamic_request(
    scorer: PerImage, request: SlimRequest, impact: str | None, step: int | None
) -> DynamicRequest:
    """The same budget and refit for a dynamic schedule.

    Raises:
        InputError: for flags of the search, which has nothing to do here, or no budget.
    """
    from slimdeploy.slim.dynamic import DynamicRequest

    looked_at = request.search_images
    refuse(
        NO_POSITIONS, impact=impact, tolerance=request.tolerance, step=step,
        search_images=None if looked_at == SEARCH_IMAGES else looked_at,
    )  # fmt: skip
    if request.reconstruct == "gradient":
        raise InputError("--reconstruct gradient: does not go with --dynamic; use refit or none")
    if request.mac_reduction is None:
        raise InputError("--dynamic: give a budget with --mac-reduction, as 0.46")
    refit = request.refit if request.reconstruct == "refit" else None
    return DynamicRequest(scorer, request.mac_reduction, request.shape, request.multiple_of, refit)


def dynamic(request: DynamicRequest, seed: int) -> Slimming:
    """Scorers, by which each image chooses its patches; the images were drawn by `seed`."""
    from slimdeploy.slim.dynamic import dynamic_model, dynamic_steps

    provenance = {
        "seed": seed,
        "mac_reduction": request.mac_reduction,
        "reconstruct": "none" if request.refit is None else "refit",
    }
    return Slimming(
        request, dynamic_steps, dynamic_model, lambda made: {"dynamic": made.dynamic}, provenance
    )
