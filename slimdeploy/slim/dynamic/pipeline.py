"""From a dense model and calibration images to a dynamic schedule, and refitted weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from slimdeploy.counts import Shape, counts_for_budget
from slimdeploy.dynamic import Dynamic, Scorer
from slimdeploy.macs import dense_macs
from slimdeploy.positions import keep_by_rank
from slimdeploy.schedule import Layer, ModelGeometry
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.dynamic.model import DynamicVit
from slimdeploy.slim.dynamic.predictor import fit_predictor
from slimdeploy.slim.dynamic.refit import refit_dynamic
from slimdeploy.slim.refit import RefitOptions
from slimdeploy.slim.types import Vit


@dataclass(frozen=True)
class DynamicRequest:
    """What to make: a scorer and a budget. `refit` None leaves the weights as they are."""

    scorer: Scorer
    mac_reduction: float
    shape: Shape = "geometric"
    multiple_of: int = 1
    refit: RefitOptions | None = field(default_factory=RefitOptions)


@dataclass(frozen=True)
class DynamicResult:
    """What was made.

    Attributes:
        layers: counts, as the patches chosen most often; their scores are shares of the images.
        dynamic: the scorer.
        model: a dense timm model with the refitted weights; None if nothing was refitted.
    """

    layers: list[Layer]
    dynamic: Dynamic
    model: Vit | None


def dynamic_model(
    dense: Vit,
    geometry: ModelGeometry,
    images: Tensor,
    request: DynamicRequest,
    progress: Callable[[str], None] | None = None,
) -> DynamicResult:
    """Make the scorers, refit the weights for their choices, and see what they choose.

    Args:
        dense: timm model in eval mode; not changed.
        images: preprocessed calibration images, [n, C, H, W].
        progress: called with one line after each finished step.

    Raises:
        InputError: for a budget that cannot be reached.
    """
    say = progress or (lambda line: None)
    counts = dynamic_counts(geometry, request)
    state = Calibration(dense, geometry, images)
    dynamic = Dynamic(scorer=request.scorer)
    if request.scorer == "predictor":
        weights = fit_predictor(state, counts)
        rows = tuple(None if w is None else tuple(map(float, w)) for w in weights)
        dynamic = Dynamic(scorer=request.scorer, weights=rows)
        say("predictor: fitted")
    slim = DynamicVit(copy.deepcopy(dense), counts, dynamic, geometry.head_reads)
    if request.refit is not None:
        refit_dynamic(state, slim, request.refit, lambda layer: say(f"layer {layer}: refitted"))
    layers = _most_chosen(state, slim.eval(), geometry, counts)
    return DynamicResult(layers, dynamic, slim.dense if request.refit is not None else None)


def dynamic_counts(geometry: ModelGeometry, request: DynamicRequest) -> list[int]:
    """Tokens kept per layer for the budget, what scoring costs at most taken off it."""
    scoring = (geometry.depth - 1) * geometry.tokens * geometry.width / dense_macs(geometry).total
    wanted = request.mac_reduction + scoring
    if not 0 <= request.mac_reduction < wanted < 1:
        wanted = request.mac_reduction  # let the message name what was asked for
    return counts_for_budget(geometry, wanted, request.shape, request.multiple_of)


def _most_chosen(
    state: Calibration, slim: DynamicVit, geometry: ModelGeometry, counts: list[int]
) -> list[Layer]:
    """The patches kept most often, nested, and how often each token is kept in each layer."""
    shares = torch.zeros(state.depth, state.tokens, dtype=torch.float64)
    for images in state.batches():
        for index, ids in enumerate(slim.choices(images)):
            shares[index] += torch.bincount(ids.flatten(), minlength=state.tokens)
    shares /= len(state.images)
    lifetime = shares.sum(0).numpy()
    lifetime[: len(geometry.prefix)] = np.inf
    keep = keep_by_rank(geometry, lifetime, counts)
    return [
        Layer(keep=ids, scores=tuple(share.tolist()))
        for ids, share in zip(keep, shares, strict=True)
    ]
