"""Are two models' outputs the same, up to float rounding?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import GateError, InputError

TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference allowed, as a share of the scale, by the coarsest type of the weights.

Float32's is four times the most that rounding was seen to make: 2.4e-5, where 1e-6 is usual, of a
DINOv2 ViT-S slimmed by 60 % and refitted. On that photograph the slim file differs by 1.4e-5 from
itself, with and without the optimiser of ONNX Runtime.
"""

DEFAULT_TOLERANCE = TOLERANCES["float32"]


@dataclass(frozen=True)
class Parity:
    """How far `other` is from `reference`.

    Attributes:
        rows: outputs compared, one a row.
        max_abs: the largest absolute difference of any element.
        scale: the largest absolute value in the reference.
        relative: max_abs / scale; 0 where both are 0.
        tolerance: the largest `relative` that passes.
        cosine_min: the smallest cosine between a row and its reference (1 where both are zero).
        top1_agreement: the share of rows whose largest element is at the same place. It is
            reported, not judged: rounding may break a tie.
        finite: whether neither side has a NaN or an infinity. Where it is False nothing else can
            be computed, and the numbers above are NaN.
        passed: finite, and relative <= tolerance.
    """

    rows: int
    max_abs: float
    scale: float
    relative: float
    tolerance: float
    cosine_min: float
    top1_agreement: float
    finite: bool
    passed: bool

    def __str__(self) -> str:
        if not self.finite:
            return f"NaN or infinity in the outputs of {self.rows} rows"
        return (
            f"max abs {self.max_abs:.2e} is {self.relative:.2e} of the scale {self.scale:.3g} "
            f"(allowed {self.tolerance:.0e}), cosine {self.cosine_min:.7f}, "
            f"top-1 agreement {self.top1_agreement:.2%} of {self.rows} rows"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain record; JSON has no NaN or infinity, so those are null."""
        return {k: v if math.isfinite(v) else None for k, v in asdict(self).items()}

    def require(self, what: str) -> None:
        """Stop if the check did not pass; `what` names the two sides, as in "slim.onnx vs torch".

        Raises:
            GateError: with the numbers.
        """
        if not self.passed:
            raise GateError(f"{what}: outputs differ: {self}")


def worst_parity(parities: Iterable[Parity]) -> Parity:
    """The one that fails, or else differs most."""
    return max(parities, key=lambda found: (not found.passed, not found.finite, found.relative))


def compare_all(
    reference: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]], tolerance: float
) -> Parity:
    """`compare_outputs` of all outputs that both sides have, by name; the worst of them.

    Raises:
        InputError: as `compare_outputs`, or if they have none in common.
    """
    shared = [name for name in reference if name in other]
    if not shared:
        raise InputError(f"no output in common: {', '.join(reference)} and {', '.join(other)}")
    pairs = [(reference[name], other[name]) for name in shared]
    rows = [tuple(x.reshape(len(x), -1) if x.ndim == 1 else x for x in pair) for pair in pairs]
    return worst_parity(compare_outputs(one, two, tolerance) for one, two in rows)


def compare_outputs(
    reference: NDArray[Any], other: NDArray[Any], tolerance: float = DEFAULT_TOLERANCE
) -> Parity:
    """Compare two sets of outputs, [rows, ...], in float64.

    The scale of the comparison is the largest absolute value anywhere in the reference: float
    rounding grows with the numbers that were added up, so a bound per element would be too strict
    for elements near zero, and an absolute bound too lax for outputs that are all small. A
    reference that is zero everywhere is only matched by zero.

    Args:
        reference: what is taken to be right.
        other: what is judged; same shape.
        tolerance: the largest difference allowed, as a share of the scale.

    Raises:
        InputError: if the shapes differ or there is nothing to compare.
    """
    if reference.shape != other.shape or reference.ndim < 2 or reference.size == 0:
        raise InputError(
            f"outputs of shape {list(reference.shape)} and {list(other.shape)} cannot be compared: "
            "both must be [rows, ...], alike and not empty"
        )
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (reference, other))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        nan = float("nan")
        return Parity(len(a), nan, nan, nan, tolerance, nan, nan, finite=False, passed=False)
    max_abs, scale = float(np.abs(a - b).max()), float(np.abs(a).max())
    return Parity(
        rows=len(a),
        max_abs=max_abs,
        scale=scale,
        relative=_share(max_abs, scale),
        tolerance=tolerance,
        cosine_min=float(_cosines(a, b).min()),
        top1_agreement=float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
        finite=True,
        passed=max_abs <= tolerance * scale,
    )


def _share(max_abs: float, scale: float) -> float:
    if scale == 0:
        return 0.0 if max_abs == 0 else float("inf")
    return max_abs / scale


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per row; 1 where both rows are zero and 0 where only one is."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = (a * b).sum(axis=1)
    both_zero = ~(a.any(axis=1) | b.any(axis=1))
    safe = np.where(norms > 0, norms, 1.0)
    cosines: NDArray[np.float64] = np.where(both_zero, 1.0, dots / safe)
    return cosines
