"""From a dense model and calibration images to a dynamic schedule, and refitted weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimdeploy.counts import TRIED, Shape, ShapeChoice, counts_by_image
from slimdeploy.dynamic import Dynamic, PerImage
from slimdeploy.forward.ridge import RidgeOptions, ridge_options
from slimdeploy.positions import most_chosen
from slimdeploy.run_state import RunState
from slimdeploy.schedule import Layer, ModelGeometry
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.dynamic.merging import MergeVit
from slimdeploy.slim.dynamic.model import DynamicVit
from slimdeploy.slim.dynamic.of_schedule import by_image
from slimdeploy.slim.dynamic.predictor import fit_predictor
from slimdeploy.slim.dynamic.refit import refit_dynamic
from slimdeploy.slim.shapes import closest_shape
from slimdeploy.slim.types import Vit


@dataclass(frozen=True)
class DynamicRequest:
    """What to make: a scorer, or `merge`, and a budget. `refit` None keeps the weights.

    With the shape `auto`, each of `TRIED` is made from three quarters of the images, and the one is
    taken that is closest to the dense model on the others.
    """

    scorer: PerImage
    mac_reduction: float
    shape: ShapeChoice = "geometric"
    multiple_of: int = 1
    refit: RidgeOptions | None = field(default_factory=lambda: ridge_options(None, True))

    def counts(self, geometry: ModelGeometry, shape: Shape) -> list[int]:
        """Tokens kept per layer for the budget, scoring within it."""
        return counts_by_image(self.scorer, geometry, self.mac_reduction, shape, self.multiple_of)


@dataclass(frozen=True)
class DynamicResult:
    """What was made.

    Attributes:
        layers: counts, as the patches chosen most often; their scores are shares of the images.
        dynamic: the scorer.
        model: a dense timm model with the refitted weights; None if nothing was refitted.
        shape: of the counts, as asked for or as chosen.
    """

    layers: list[Layer]
    dynamic: Dynamic
    model: Vit | None
    shape: Shape


def dynamic_model(
    dense: Vit,
    geometry: ModelGeometry,
    images: Tensor,
    request: DynamicRequest,
    saved: RunState | None = None,
    progress: Callable[[str], None] | None = None,
) -> DynamicResult:
    """Make the scorers, refit the weights for their choices, and see what they choose.

    Args:
        dense: timm model in eval mode; not changed.
        images: preprocessed calibration images, [n, C, H, W].
        saved: what a run that was killed had found.
        progress: called with one line after each finished step.

    Raises:
        InputError: for a budget that cannot be reached.
    """
    saved = saved or RunState(None, {})
    if request.shape == "auto":
        counts_of = partial(request.counts, geometry)

        def made(fitted: Calibration, tried: Shape) -> DynamicVit | MergeVit:
            return _made(fitted, counts_of(tried), request)[0]

        def closest() -> Shape:
            return closest_shape(dense, geometry, images, counts_of, made, progress)

        shape = saved.once("shape", closest, TRIED)
    else:
        shape = request.shape
    state, counts = Calibration(dense, geometry, images), request.counts(geometry, shape)
    slim, dynamic = _made(state, counts, request, progress, saved)
    layers = most_chosen(geometry, _chosen(state, slim), counts)
    return DynamicResult(layers, dynamic, slim.dense if request.refit is not None else None, shape)


def dynamic_steps(geometry: ModelGeometry, request: DynamicRequest) -> int:
    """How many lines of progress `dynamic_model` gives."""
    refits = geometry.depth * (request.refit is not None)
    return len(TRIED) * (request.shape == "auto") + (request.scorer == "predictor") + refits


def _made(
    state: Calibration,
    counts: list[int],
    request: DynamicRequest,
    progress: Callable[[str], None] | None = None,
    saved: RunState | None = None,
) -> tuple[DynamicVit | MergeVit, Dynamic]:
    """The slim model of these counts, its scorers fitted and its own weights refitted."""
    say = progress or (lambda line: None)
    dynamic = Dynamic(scorer=request.scorer)
    if request.scorer == "predictor":
        weights = fit_predictor(state, counts)
        rows = tuple(None if w is None else tuple(map(float, w)) for w in weights)
        dynamic = Dynamic(scorer=request.scorer, weights=rows)
        say("predictor: fitted")
    slim = by_image(copy.deepcopy(state.dense), counts, dynamic, state.geometry.head_reads)
    if request.refit is not None:
        refit_dynamic(
            state, slim, request.refit, lambda layer: say(f"layer {layer}: refitted"), saved
        )
    return slim.eval(), dynamic


def _chosen(state: Calibration, slim: DynamicVit | MergeVit) -> NDArray[np.float64]:
    """How often each token is kept in each layer, [L, N] of shares of the images."""
    shares = torch.zeros(state.depth, state.tokens, dtype=torch.float64)
    for images in state.batches():
        for index, ids in enumerate(slim.choices(images)):
            shares[index] += torch.bincount(ids.flatten(), minlength=state.tokens)
    return (shares / len(state.images)).numpy()
