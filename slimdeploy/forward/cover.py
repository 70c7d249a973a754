"""Kept tokens that the dropped ones can be predicted from: `slim --onnx --impact cover`.

What a dropped token would have said is lost only as far as it cannot be told from the tokens that
stay: the refit behind it is linear and has a bias. So tokens are chosen greedily such that the
others, as they change from image to image, are predicted best by linear combinations of the chosen:

    min_K  sum_j w_j min_c || x_j - sum_{k in K} c_k x_k ||²

x_j holds token j over all images and features, [n D], normalised as a LayerNorm would and with its
mean over images taken off; w_j is the squared attention that j receives in the next block from the
tokens kept there. Only the Gram matrix of the tokens is needed, [N, N]; choosing one more token is
a step of a pivoted Cholesky factorisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slimdeploy.forward.maps import map_part, per_head
from slimdeploy.forward.running import open_part
from slimdeploy.forward.store import Array
from slimdeploy.forward.views import Views

Floats = NDArray[np.float64]

_NOTHING = 1e-9
"""Share of the largest diagonal below which a token has nothing left to say."""


def cover(views: Views, layer: int) -> Floats:
    """Order of choice as scores, [N]: the token chosen first is the largest."""
    gram = token_gram(views, layer)
    if layer == len(views.blocks):
        return cover_ranks(gram, np.ones(views.tokens), [])
    given = sorted({*views.keep[layer + 1], *range(len(views.geometry.prefix))})
    return cover_ranks(gram, received_squares(views, layer), given)


def token_gram(views: Views, layer: int) -> Floats:
    """Inner products of tokens over images and features, [N, N], means over images taken off."""
    stream = views.stream(layer)
    mean = np.zeros(stream.shape[1:])
    for rows in views.feed.rows():
        mean += _normalised(stream[rows]).sum(0)
    mean /= len(stream)
    gram = np.zeros((views.tokens, views.tokens))
    for rows in views.feed.rows():
        x = (_normalised(stream[rows]) - mean).astype(np.float32)
        gram += np.einsum("bnd,bmd->nm", x, x, optimize=True)
    return gram / len(stream)


def _normalised(x: Array) -> Floats:
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    result: Floats = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return result


def received_squares(views: Views, layer: int) -> Floats:
    """Mean squared attention that each token gets in the next block, from what is kept there."""
    block, queries = views.blocks[layer], list(views.keep[layer + 1])
    total = np.zeros(views.tokens)
    model, name = map_part(views.cutter, block, views.tokens)
    with open_part(model) as part:
        for rows, outputs in views.feed.run(part, views.entering(block)):
            maps = per_head(outputs[name], rows.stop - rows.start)[:, :, queries]
            total += np.square(maps, dtype=np.float64).mean((1, 2)).sum(0)
    return total / len(views.feed.images)


def cover_ranks(gram: Floats, weights: Floats, given: Sequence[int]) -> Floats:
    """Greedy choice of columns, [N]: `given` first, then the one that lowers the error most.

    Args:
        gram: [N, N], symmetric and not negative.
        weights: of each token's error, [N].
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
    """The free token whose choice lowers the weighted error most."""
    own = np.diagonal(left)
    gain = (weights @ np.square(left)) / np.maximum(own, least)
    gain[chosen | (own <= least)] = -1.0
    if gain.max() < 0:  # all others are predicted already: by weight
        gain = np.where(chosen, -1.0, weights)
    return int(gain.argmax())
