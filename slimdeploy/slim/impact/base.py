"""The one interface of all estimators of a token's impact on the result."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from slimdeploy.slim.calibration import Calibration


class Impact(Protocol):
    """Scores the tokens of one layer when all deeper layers have been slimmed already."""

    def scores(self, state: Calibration, layer: int) -> Tensor:
        """Score per token of the dense model, [N]; larger is kept first.

        Args:
            state: images and models; `state.keep` holds the layers after `layer`.
            layer: the layer to be slimmed, from 1.
        """
        ...
