"""Which shape of counts suits a model: each is tried, refitted, and measured on held-out images.

What a layer can do without depends on the model, on the budget and on what the refit gives back; no
fixed pyramid is best for all. A trial costs one choice of tokens and one refit on three quarters of
the images; the others measure. On fewer images the refit gives less back, and another shape wins.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slimdeploy.counts import Shape, best_shape, counts_for_budget
from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.schedule import ModelGeometry
from slimdeploy.slim.batches import picked
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.impact import Impact
from slimdeploy.slim.model import SlimVit
from slimdeploy.slim.refit import refit_model
from slimdeploy.slim.search import top_up
from slimdeploy.slim.types import Vit
from slimdeploy.store import open_store

_EVERY = 4
"""One in so many images is held out."""


def closest_shape(
    dense: Vit,
    geometry: ModelGeometry,
    images: Tensor,
    counts: Callable[[Shape], list[int]],
    make: Callable[[Calibration, Shape], Any],
    progress: Callable[[str], None] | None = None,
) -> Shape:
    """The shape whose slim model is closest to the dense one, in what the head reads.

    Args:
        images: all calibration images, [n, C, H, W].
        counts: of a shape; raises `InputError` for one that cannot save what is asked for.
        make: the slim model of a shape, fitted to the images it is given.
        progress: called with a line for each shape.
    """
    held = list(range(_EVERY - 1, len(images), _EVERY))
    fit = sorted({*range(len(images))} - {*held})
    reads = list(geometry.head_reads)
    with open_store() as store:
        seen = picked(store, images, held) if held else images
        fitted = Calibration(dense, geometry, picked(store, images, fit) if held else images)
        with torch.no_grad():
            wanted = torch.cat([dense.forward_features(x)[:, reads] for x in seen.split(16)])

        def error(shape: Shape) -> float:
            slim = make(fitted, shape)
            with torch.no_grad():
                found = torch.cat([slim.forward_features(x) for x in seen.split(16)])
            return float((found - wanted).square().sum() / wanted.square().sum())

        return best_shape(counts, error, progress)


@dataclass(frozen=True)
class Trial:
    """Slims a model to static positions by a shape of counts.

    Attributes:
        state: the images that the search looks at; its `keep` is filled in.
        images: all calibration images, [n, C, H, W].
        impact: ranks the tokens.
        refit: how weights are solved for; None leaves them.
    """

    state: Calibration
    images: Tensor
    impact: Impact
    refit: RidgeOptions | None
    mac_reduction: float
    multiple_of: int = 1

    def best(self, progress: Callable[[str], None] | None = None) -> Shape:
        """The shape with the least error."""
        dense, geometry = self.state.dense, self.state.geometry
        return closest_shape(dense, geometry, self.images, self._counts, self._made, progress)

    def _counts(self, shape: Shape) -> list[int]:
        geometry = self.state.geometry
        return counts_for_budget(geometry, self.mac_reduction, shape, self.multiple_of)

    def _made(self, fitted: Calibration, shape: Shape) -> SlimVit:
        keep, model = self._choose(shape), self.state.dense
        if self.refit is not None:
            model = copy.deepcopy(model)
            refit_model(fitted, model, keep, self.refit)
        return SlimVit(model, keep).eval()

    def _choose(self, shape: Shape) -> list[list[int]]:
        state, geometry = self.state, self.state.geometry
        counts = self._counts(shape)
        state.keep = {state.depth: list(geometry.head_reads)}
        for layer in range(state.depth - 1, 0, -1):
            floor = sorted({*state.keep[layer + 1], *state.protected})
            state.keep[layer] = top_up(self.impact.scores(state, layer), floor, counts[layer - 1])
        return [state.keep[layer] for layer in range(1, state.depth + 1)]
