"""Do two graphs hold the same residual stream, block by block and token by token?

Activations are taken in batch by batch; only the extremes are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import GateError

Array = NDArray[Any]
Point = Literal["attention", "output"]

_WORDS: dict[Point, str] = {"attention": "after attention", "output": "after the MLP"}
_TURN = 50
"""How much further a row may turn than the tolerance on its elements, in radians."""


@dataclass(frozen=True)
class Spot:
    """One stream, as either graph holds it.

    Attributes:
        block: number of the block, from 1.
        point: after its attention, or after its MLP (what the next block or the head reads).
        dense: name of the tensor in the reference, which holds every token.
        slim: name of the tensor in the graph that is judged.
        axis: the token axis of both, where they are no matrices of all images' tokens.
        ids: the tokens that `slim` holds, in its order.
    """

    block: int
    point: Point
    dense: str
    slim: str
    axis: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class StreamParity:
    """How far a stream is from its reference, over all images and the tokens that are kept.

    Attributes:
        block, point, dense, slim: see `Spot`.
        tokens: how many tokens were compared.
        max_abs: the largest absolute difference of any element.
        scale: the largest absolute value in the reference.
        relative: max_abs / scale.
        cosine_min: the smallest cosine between a token's row and its reference.
        worst_token: global id of the token with the largest difference.
        finite: whether neither side has a NaN or an infinity; the numbers are NaN where one has.
        passed: finite, relative <= tolerance, and no row has turned by more than 50 times the
            tolerance. The turn finds what is wrong with an ordinary token where a few tokens are
            a hundred times larger than the others and set the scale.
    """

    block: int
    point: Point
    dense: str
    slim: str
    tokens: int
    max_abs: float
    scale: float
    relative: float
    cosine_min: float
    worst_token: int
    finite: bool
    passed: bool

    def __str__(self) -> str:
        where = (
            f"block {self.block} {_WORDS[self.point]}, tensor '{self.slim}' "
            f"(dense '{self.dense}'), token {self.worst_token}"
        )
        if not self.finite:
            return f"{where}: NaN or infinity"
        return (
            f"{where}: max abs {self.max_abs:.2e} is {self.relative:.2e} of the scale "
            f"{self.scale:.3g}, cosine {self.cosine_min:.7f}"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain record; JSON has no NaN or infinity, so those are null."""
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in asdict(self).items()
        }


class BlockParity:
    """Compares streams batch by batch.

    Example:
        >>> parity = BlockParity(spots)
        >>> for images in batches:
        ...     parity.add(len(images), reference(images), slim(images))
        >>> parity.results(1e-4)
    """

    def __init__(self, spots: Sequence[Spot]) -> None:
        self._extremes = [_Extremes(spot) for spot in spots]

    def add(self, images: int, dense: Mapping[str, Array], slim: Mapping[str, Array]) -> None:
        """Take in one batch of so many images: the tensors of both graphs by name.

        Raises:
            GateError: if a stream does not hold the tokens that it should.
        """
        for extremes in self._extremes:
            spot = extremes.spot
            reference = _rows(dense[spot.dense], spot.axis, images)[:, list(spot.ids)]
            extremes.add(reference, _rows(slim[spot.slim], spot.axis, images))

    def results(self, tolerance: float) -> list[StreamParity]:
        """The verdict on each stream, in the order of computation."""
        return [extremes.result(tolerance) for extremes in self._extremes]


@dataclass
class _Extremes:
    spot: Spot
    max_abs: float = -1.0
    scale: float = 0.0
    cosine_min: float = math.inf
    worst_token: int = -1
    finite: bool = True

    def add(self, reference: NDArray[np.float64], rows: NDArray[np.float64]) -> None:
        if rows.shape != reference.shape:
            raise GateError(
                f"block {self.spot.block} {_WORDS[self.spot.point]}: tensor '{self.spot.slim}' "
                f"holds {list(rows.shape[1:])}, expected are {list(reference.shape[1:])} "
                "[tokens, width]"
            )
        if not self.finite:
            return
        with np.errstate(invalid="ignore"):
            difference = np.abs(rows - reference).max(axis=(0, 2))
        place = int(np.argmax(difference))  # a NaN counts as the largest
        if not difference[place] <= self.max_abs:
            self.max_abs, self.worst_token = float(difference[place]), self.spot.ids[place]
        self.finite = bool(np.isfinite(difference).all())
        if not self.finite:
            return
        self.scale = max(self.scale, float(np.abs(reference).max()))
        self.cosine_min = min(self.cosine_min, _smallest_cosine(reference, rows))

    def result(self, tolerance: float) -> StreamParity:
        spot, nan = self.spot, math.nan
        zero = 0.0 if self.max_abs == 0 else math.inf
        relative = self.max_abs / self.scale if self.scale else zero
        turned = self.cosine_min < 1 - (_TURN * tolerance) ** 2 / 2
        numbers = (self.max_abs, self.scale, relative, self.cosine_min)
        return StreamParity(
            spot.block,
            spot.point,
            spot.dense,
            spot.slim,
            len(spot.ids),
            *(numbers if self.finite else (nan, nan, nan, nan)),
            self.worst_token,
            self.finite,
            passed=self.finite and self.max_abs <= tolerance * self.scale and not turned,
        )


def _rows(stream: Array, axis: int, images: int) -> NDArray[np.float64]:
    """The stream as [image, token, width]; a matrix holds the rows of all images."""
    if stream.ndim == 2:
        return stream.reshape(images, -1, stream.shape[-1]).astype(np.float64)
    moved = np.moveaxis(stream, axis, 1)
    return moved.reshape(images, moved.shape[1], -1).astype(np.float64)


def _smallest_cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Over all rows; 1 for a row that is zero on both sides, 0 where only one is zero."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    both_zero = ~(a.any(axis=-1) | b.any(axis=-1))
    dots = np.einsum("btw,btw->bt", a, b)
    return float(np.where(both_zero, 1.0, dots / np.where(norms > 0, norms, 1.0)).min())


def first_bad(results: Sequence[StreamParity]) -> StreamParity | None:
    """Where the graphs part: the first stream that differs."""
    return next((result for result in results if not result.passed), None)


def worst(results: Sequence[StreamParity]) -> StreamParity | None:
    """The stream that differs most, as a share of its scale."""
    return max(results, key=lambda r: r.relative if r.finite else math.inf, default=None)
