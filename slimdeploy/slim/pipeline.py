"""From a dense model and calibration images to what every layer keeps, and refitted weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from slimdeploy.counts import TRIED, Shape, ShapeChoice, counts_for_budget
from slimdeploy.errors import InputError
from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.images import spread
from slimdeploy.run_state import RunState
from slimdeploy.schedule import Layer, ModelGeometry
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.choices import DEFAULT_IMPACT, SEARCH_IMAGES, ImpactName, Reconstruct
from slimdeploy.slim.impact import Impact, make_impact
from slimdeploy.slim.reconstruct import GradientOptions
from slimdeploy.slim.refit import refit_model
from slimdeploy.slim.search import SearchOptions, search
from slimdeploy.slim.search_state import SearchState
from slimdeploy.slim.shapes import Trial
from slimdeploy.slim.types import Vit


@dataclass(frozen=True)
class SlimRequest:
    """What to search for; one of `mac_reduction` and `tolerance`.

    The search looks at `search_images` of the calibration images, evenly drawn: rankings settle
    long before weights do. The final refit looks at all of them.
    """

    mac_reduction: float | None = None
    tolerance: float | None = None
    shape: ShapeChoice = "geometric"
    multiple_of: int = 1
    impact: ImpactName = DEFAULT_IMPACT
    reconstruct: Reconstruct = "refit"
    step: int = 10
    seed: int = 0
    search_images: int = SEARCH_IMAGES
    refit: RidgeOptions = field(default_factory=RidgeOptions)
    gradient: GradientOptions = field(default_factory=GradientOptions)

    def check(self) -> None:
        """Refuse, before a model or an image is read, what no search can do.

        Raises:
            InputError: naming the flag.
        """
        if self.search_images < 1:
            raise InputError(f"--search-images {self.search_images}: must be at least 1")
        self._options(None if self.mac_reduction is None else [])
        counted = {"--shape": self.shape != "geometric", "--multiple-of": self.multiple_of != 1}
        for flag, given in counted.items():
            if given and self.tolerance is not None:
                raise InputError(f"{flag}: goes with --mac-reduction, not with --tolerance")

    def search_options(self, geometry: ModelGeometry) -> SearchOptions:
        """The search's options, with a budget turned into counts per layer.

        Raises:
            InputError: for a budget or tolerance that makes no sense.
        """
        counts = None
        if self.mac_reduction is not None:
            if self.shape == "auto":
                raise ValueError("the shape is to be chosen first")
            counts = counts_for_budget(geometry, self.mac_reduction, self.shape, self.multiple_of)
        return self._options(counts)

    def _options(self, counts: list[int] | None) -> SearchOptions:
        return SearchOptions(
            counts=counts,
            tolerance=self.tolerance,
            step=self.step,
            reconstruct=self.reconstruct,
            seed=self.seed,
            gradient=self.gradient,
            refit=self.refit,
        )


@dataclass(frozen=True)
class SlimResult:
    """What a search found.

    Attributes:
        layers: kept tokens, scores and errors, first layer first.
        model: a dense timm model with the recovered weights; None if nothing was reconstructed.
        shape: of the counts, as asked for or as chosen; None with a tolerance.
    """

    layers: list[Layer]
    model: Vit | None
    shape: Shape | None


def slim_model(
    dense: Vit,
    geometry: ModelGeometry,
    images: Tensor,
    request: SlimRequest,
    saved: SearchState | None = None,
    progress: Callable[[str], None] | None = None,
) -> SlimResult:
    """Search what each layer keeps and recover the model's accuracy without labels.

    Args:
        dense: timm model in eval mode; not changed.
        images: preprocessed calibration images, [n, C, H, W].
        saved: what a run that was killed had found.
        progress: called with one line after each finished step.

    Raises:
        InputError: for a budget or tolerance that makes no sense.
    """
    request.check()
    impact = make_impact(request.impact, request.seed)
    state = Calibration(dense, geometry, images[spread(len(images), request.search_images)])
    shape = _shape(state, images, impact, request, saved, progress)
    state.keep = {}
    options = replace(request, shape=shape or "geometric").search_options(geometry)

    def report(layer: int, found: Layer) -> None:
        if progress:
            error = "" if found.error is None else f", error {found.error:.2e}"
            progress(f"layer {layer}: keeps {len(found.keep)} tokens{error}")

    layers = search(state, impact, options, saved, report)
    if request.reconstruct == "none":
        return SlimResult(layers, None, shape)
    if request.reconstruct == "gradient":
        return SlimResult(layers, state.slim, shape)
    model = copy.deepcopy(dense)
    state.forget_streams()
    refit_model(
        Calibration(dense, geometry, images),
        model,
        [layer.keep for layer in layers],
        request.refit,
        lambda layer: progress(f"layer {layer}: refitted") if progress else None,
        saved,
    )
    return SlimResult(layers, model, shape)


def steps(geometry: ModelGeometry, request: SlimRequest) -> int:
    """How many lines of progress `slim_model` gives."""
    trials = len(TRIED) if request.mac_reduction is not None and request.shape == "auto" else 0
    refits = geometry.depth if request.reconstruct == "refit" else 0
    return trials + geometry.depth - 1 + refits


def _shape(
    state: Calibration,
    images: Tensor,
    impact: Impact,
    request: SlimRequest,
    saved: SearchState | None,
    progress: Callable[[str], None] | None,
) -> Shape | None:
    """The shape that is asked for, or the best one; a killed run's choice is taken again."""
    if request.mac_reduction is None:
        return None
    if request.shape != "auto":
        return request.shape
    refit = None if request.reconstruct == "none" else request.refit
    trial = Trial(state, images, impact, refit, request.mac_reduction, request.multiple_of)
    return (saved or RunState(None, {})).once("shape", lambda: trial.best(progress), TRIED)
