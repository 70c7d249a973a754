"""Ridge regression with the old weights as the prior, summed batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import InputError
from slimdeploy.store import Array

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RidgeOptions:
    """How the regression weighs its evidence.

    Attributes:
        strength: λ in units of the mean diagonal of the normal matrix.
        read_weight: weight of the tokens that the head reads; others weigh 1.
    """

    strength: float = 1.0
    read_weight: float = 30.0

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise InputError(f"--ridge {self.strength}: must be above 0")


class Normal:
    """Weighted normal equations of a linear layer, in float64; as many as its inputs, squared.

    What is solved for is the change that the layer needs:

        min_Δ  sum_i w_i || a_i Δ - (y_i - a_i W) ||² + λ ||Δ||²

    Args:
        bias: the layer has one, which is solved for too and is not penalised.
    """

    def __init__(self, bias: bool) -> None:
        self.bias = bias
        self.left: Floats | None = None
        self.right: Floats | None = None

    def add(self, inputs: Array, missing: Array, weights: Array) -> None:
        """Add inputs [n, I] and what is still missing of the target, [n, O]; weights [n].

        Products are summed in float32 within a batch and in float64 over the batches.
        """
        a = inputs.astype(np.float32, copy=False)
        if self.bias:
            a = np.concatenate([a, np.ones((len(a), 1), np.float32)], axis=1)
        weighted = (a * weights.astype(np.float32)[:, None]).T
        left = (weighted @ a).astype(np.float64)
        right = (weighted @ missing.astype(np.float32, copy=False)).astype(np.float64)
        self.left = left if self.left is None else self.left + left
        self.right = right if self.right is None else self.right + right

    def solve(self, strength: float) -> tuple[Floats, Floats | None]:
        """The change of the weight, [I, O], and of the bias, [O]; None without one."""
        assert self.left is not None
        assert self.right is not None
        size = len(self.left) - self.bias
        penalty = float(np.diagonal(self.left)[:size].mean() * strength)
        ridge = np.full(len(self.left), penalty)
        ridge[size:] = 1e-9 * penalty
        solved: Floats = np.linalg.solve(self.left + np.diag(ridge), self.right).astype(
            np.float64, copy=False
        )
        shift: Floats | None = solved[size] if self.bias else None
        return solved[:size], shift
