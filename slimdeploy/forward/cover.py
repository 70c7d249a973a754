"""Kept tokens that the dropped ones can be predicted from: `slim --onnx --impact cover`.

What a dropped token would have said is lost only as far as it cannot be told from the tokens that
stay: the refit behind it is linear and has a bias. So tokens are chosen greedily such that the
others, as they change from image to image, are predicted best by linear combinations of the chosen:

    min_K  sum_j w_j min_c || x_j - sum_{k in K} c_k x_k ||²

x_j holds token j over all images and features, [n D], normalised as a LayerNorm would and with its
mean over images taken off; w_j is the squared attention that j receives in the next block from the
tokens kept there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slimdeploy.cover_ranks import cover_ranks
from slimdeploy.forward.maps import map_part, per_head
from slimdeploy.forward.running import open_part
from slimdeploy.forward.views import Views
from slimdeploy.store import Array

Floats = NDArray[np.float64]


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
