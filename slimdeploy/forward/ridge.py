"""Ridge regression with the old weights as the prior, summed batch by batch.

How strong the prior is to be depends on the layer, and on who chooses the tokens: positions that
are the same for all images want it strong, choices by image ten times weaker and more
(`docs/bench/refit_strength.md`). So it can be chosen layer by layer: the regression is solved on
three of four images for each strength, and judged on the fourth. That takes no second pass: the
squared error on the images held out is a quadratic form of their own normal equations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import InputError
from slimdeploy.slim.choices import Strength
from slimdeploy.store import Array

Floats = NDArray[np.float64]

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Those that `auto` tries; if none helps, the layer stays as it is."""

FEW = 1.0
"""The strength of `auto` where no image can be held out."""

_HELD_OUT = 4
"""One image of so many is held out."""


@dataclass(frozen=True)
class RidgeOptions:
    """How the regression weighs its evidence.

    Attributes:
        strength: λ in units of the mean diagonal of the normal matrix; `auto` chooses it for each
            layer on images held out.
        read_weight: weight of the tokens that the head reads; others weigh 1.
    """

    strength: Strength = 1.0
    read_weight: float = 30.0

    def __post_init__(self) -> None:
        if self.strength != "auto" and not self.strength > 0:
            raise InputError(f"--ridge {self.strength}: must be above 0")


def ridge_options(asked: Strength | None, by_image: bool) -> RidgeOptions:
    """The strength asked for; by default 1, and `auto` where each image chooses its tokens.

    Measured: where all images keep the same positions, 1 is as good.
    """
    return RidgeOptions(("auto" if by_image else 1.0) if asked is None else asked)


@dataclass
class _Sums:
    """Σ w aᵀa, Σ w aᵀm and Σ w |m|² of inputs a [n, I] and what is missing, m [n, O]."""

    left: Floats
    right: Floats
    square: float

    def plus(self, other: _Sums) -> _Sums:
        """Of both."""
        return _Sums(self.left + other.left, self.right + other.right, self.square + other.square)

    def error(self, change: Floats) -> float:
        """Σ w |m - a Δ|² for a change Δ, [I, O]."""
        gained = 2 * np.vdot(self.right, change) - np.vdot(change, self.left @ change)
        return self.square - float(gained)


class Normal:
    """Weighted normal equations of a linear layer, in float64; as many as its inputs, squared.

    What is solved for is the change that the layer needs:

        min_Δ  sum_i w_i || a_i Δ - (y_i - a_i W) ||² + λ ||Δ||²

    Args:
        bias: the layer has one, which is solved for too and is not penalised.
        judged: sums of the images held out are kept apart, so that `auto` can be solved with.
    """

    def __init__(self, bias: bool, judged: bool = False) -> None:
        self.bias, self.judged, self.images = bias, judged, 0
        self.fitted: _Sums | None = None
        self.held: _Sums | None = None

    def add_images(self, inputs: Array, missing: Array, weights: Array) -> None:
        """Add inputs [B, q, I] of the next images and what is missing of their targets, [B, q, O].

        Args:
            weights: of the tokens, [q], or of each image's own, [B, q].
        """
        weights = np.broadcast_to(weights, inputs.shape[:2])
        fitted = np.ones(len(inputs), bool)
        if self.judged:
            numbers = np.arange(self.images, self.images + len(inputs))
            fitted = numbers % _HELD_OUT != _HELD_OUT - 1
        self.images += len(inputs)
        for chosen, held in ((fitted, False), (~fitted, True)):
            if chosen.any():
                whole = chosen.all()
                a, m, w = (x if whole else x[chosen] for x in (inputs, missing, weights))
                a, m = a.reshape(-1, a.shape[-1]), m.reshape(-1, m.shape[-1])
                self.add(a, m, w.reshape(-1), held)

    def add(self, inputs: Array, missing: Array, weights: Array, held: bool = False) -> None:
        """Add inputs [n, I] and what is still missing of the target, [n, O]; weights [n].

        Products are summed in float32 within a batch and in float64 over the batches.
        """
        a = inputs.astype(np.float32, copy=False)
        if self.bias:
            a = np.concatenate([a, np.ones((len(a), 1), np.float32)], axis=1)
        m, w = missing.astype(np.float32, copy=False), weights.astype(np.float32)[:, None]
        weighted = (a * w).T
        square = float((w * np.square(m)).sum(dtype=np.float64)) if self.judged else 0.0
        sums = _Sums((weighted @ a).astype(np.float64), (weighted @ m).astype(np.float64), square)
        if held:
            self.held = sums if self.held is None else self.held.plus(sums)
        else:
            self.fitted = sums if self.fitted is None else self.fitted.plus(sums)

    def solve(self, strength: Strength) -> tuple[Floats, Floats | None]:
        """The change of the weight, [I, O], and of the bias, [O]; None without one."""
        known = [sums for sums in (self.fitted, self.held) if sums is not None]
        sums = known[0] if len(known) == 1 else known[0].plus(known[1])
        chosen = self._chosen() if strength == "auto" else strength
        solved = np.zeros_like(sums.right) if chosen is None else self._solved(sums, chosen)
        size = len(sums.left) - self.bias
        return solved[:size], solved[size] if self.bias else None

    def _chosen(self) -> float | None:
        """The strength that is best on the images held out; None where no change is better."""
        if self.fitted is None or self.held is None:
            return FEW
        errors = {s: self.held.error(self._solved(self.fitted, s)) for s in STRENGTHS}
        best = min(errors, key=lambda strength: errors[strength])
        return best if errors[best] < self.held.square else None

    def _solved(self, sums: _Sums, strength: float) -> Floats:
        """The minimum for one strength, [I (+ 1), O]."""
        size = len(sums.left) - self.bias
        # Inputs that are zero throughout: any penalty leaves their weights as they are.
        penalty = float(np.diagonal(sums.left)[:size].mean() * strength) or strength
        ridge = np.full(len(sums.left), penalty)
        ridge[size:] = 1e-9 * penalty
        solved = np.linalg.solve(sums.left + np.diag(ridge), sums.right)
        return np.asarray(solved, np.float64)
