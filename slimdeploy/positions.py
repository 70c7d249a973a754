"""Positions that need no data: the baselines that a search must beat, and `plan`'s choices.

Each function ranks all tokens of a model: larger is kept first. Prefix tokens rank above all
patches, since they are few and the head, or the other tokens, read them.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import InputError
from slimdeploy.schedule import Layer, ModelGeometry

Positions = Literal["grid", "centre", "random"]


def rank_positions(
    model: ModelGeometry, positions: Positions, seed: int = 0
) -> NDArray[np.float64]:
    """Rank of every token, shape [tokens], by a rule that looks at no image.

    Raises:
        InputError: for a rule that is not one of `Positions`.
    """
    if seed < 0:
        raise InputError(f"--seed {seed}: must be 0 or more")
    rules = {"grid": _grid, "centre": _centre, "random": _random}
    if positions not in rules:
        raise InputError(f"--positions {positions}: not one of {', '.join(get_args(Positions))}")
    patches = rules[positions](model, seed)
    prefix = np.full(len(model.prefix), patches.max() + 1)
    return np.concatenate([prefix, patches])


def _places(model: ModelGeometry) -> NDArray[np.float64]:
    """Row and column of every patch, shape [patches, 2]."""
    rows, columns = np.indices(model.grid)
    return np.stack([rows.ravel(), columns.ravel()], axis=1).astype(np.float64)


def _grid(model: ModelGeometry, seed: int) -> NDArray[np.float64]:
    """Farthest-point order: every first part of it covers the image evenly."""
    places = _places(model)
    nearest = ((places - places.mean(axis=0)) ** 2).sum(axis=1)
    order = [int(nearest.argmin())]
    nearest = ((places - places[order[0]]) ** 2).sum(axis=1)
    while len(order) < len(places):
        order.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((places - places[order[-1]]) ** 2).sum(axis=1))
    return _ranks(np.array(order))


def _centre(model: ModelGeometry, seed: int) -> NDArray[np.float64]:
    places = _places(model)
    distance: NDArray[np.float64] = ((places - places.mean(axis=0)) ** 2).sum(axis=1)
    return -distance


def _random(model: ModelGeometry, seed: int) -> NDArray[np.float64]:
    return _ranks(np.random.default_rng(seed).permutation(model.patches))


def _ranks(order: NDArray[np.intp]) -> NDArray[np.float64]:
    """From an order, best first, to a score per element."""
    scores = np.empty(len(order))
    scores[order] = np.arange(len(order), 0, -1)
    return scores


def keep_by_rank(
    model: ModelGeometry, rank: NDArray[np.float64], counts: list[int]
) -> list[tuple[int, ...]]:
    """Nested kept ids: layer l keeps the counts[l] best-ranked tokens.

    The last layer chooses among those that the head reads or pools over.
    """
    rank = rank.copy()
    rank[list(model.head_reads)] = np.inf
    order = [int(i) for i in np.argsort(-rank, kind="stable")]
    needed = {*model.head_reads, *model.head_pools}
    last = [i for i in order if i in needed][: counts[-1]]
    return [tuple(sorted(ids)) for ids in (*(order[:count] for count in counts[:-1]), last)]


def most_chosen(
    model: ModelGeometry, shares: NDArray[np.float64], counts: list[int]
) -> list[Layer]:
    """The layers of a dynamic schedule: nested ids of the tokens that images keep most often.

    Args:
        shares: of the images that keep each token in each layer, [L, N]; told as the scores.
    """
    lifetime = shares.sum(0)
    lifetime[: len(model.prefix)] = np.inf
    keep = keep_by_rank(model, lifetime, counts)
    return [
        Layer(keep=ids, scores=tuple(share.tolist()))
        for ids, share in zip(keep, shares, strict=True)
    ]
