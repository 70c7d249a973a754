"""Greedy choice of the columns from which all others are predicted best; used by both searches.

    min_K  sum_j w_j min_c || x_j - sum_{k in K} c_k x_k ||²

Only the Gram matrix of the columns x_j is needed; choosing one more column is a step of a pivoted
Cholesky factorisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NOTHING = 1e-9
"""Share of the largest diagonal below which a column has nothing left to say."""


def cover_ranks(gram: Floats, weights: Floats, given: Sequence[int]) -> Floats:
    """Greedy choice of columns, [N]: `given` first, then the one that lowers the error most.

    Args:
        gram: [N, N], symmetric and not negative.
        weights: of each column's error, [N].
    """
    left = gram.copy()
    least = _NOTHING * max(float(np.diagonal(gram).max()), np.finfo(np.float64).tiny)
    ranks = np.full(len(gram), -1.0)
    for place in range(len(gram)):
        index = given[place] if place < len(given) else _best(left, weights, ranks >= 0, least)
        ranks[index] = len(gram) - place
        if left[index, index] > least:
            column = left[:, index].copy()
            left -= np.outer(column, column) / left[index, index]
    return ranks


def _best(left: Floats, weights: Floats, chosen: NDArray[np.bool_], least: float) -> int:
    """The free column whose choice lowers the weighted error most."""
    own = np.diagonal(left)
    gain = (weights @ np.square(left)) / np.maximum(own, least)
    gain[chosen | (own <= least)] = -1.0
    if gain.max() < 0:  # all others are predicted already: by weight
        gain = np.where(chosen, -1.0, weights)
    return int(gain.argmax())
