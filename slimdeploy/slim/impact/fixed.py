"""Positions that look at no image, as estimators: the controls every search must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from slimdeploy.positions import Positions, rank_positions
from slimdeploy.slim.calibration import Calibration


class FixedImpact:
    """The same ranking in every layer: uniform grid, centre or (seeded) random positions."""

    def __init__(self, positions: Positions, seed: int = 0) -> None:
        self.positions, self.seed = positions, seed

    def scores(self, state: Calibration, layer: int) -> Tensor:
        return torch.from_numpy(rank_positions(state.geometry, self.positions, self.seed))
