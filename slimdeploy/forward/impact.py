"""What ranks the tokens of a layer, from forward passes alone (`slim --onnx --impact NAME`).

`grid`, `centre`, `random`  look at no image (`slimdeploy.positions`)
`attention`        norm of what the block's own attention gives a token, before the projection
`class-attention`  how much what the head reads attends to a token in the next block
`path`             the paper's impact score, over all attention paths to what the last layer keeps
`cover`            tokens that the others are predicted from best (`forward/cover.py`)

They are the PyTorch path's estimators (`slim/impact/`), with dense weights in all blocks; there
`path` looks through the blocks above as they were recovered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import GraphError
from slimdeploy.forward.choices import ForwardImpact, require_readers
from slimdeploy.forward.cover import cover
from slimdeploy.forward.linear import Linear, find_linear
from slimdeploy.forward.maps import map_part, per_head, stream_part
from slimdeploy.forward.running import open_part
from slimdeploy.forward.views import Views
from slimdeploy.positions import rank_positions
from slimdeploy.store import Array

Floats = NDArray[np.float64]


def scores(views: Views, impact: ForwardImpact, layer: int, seed: int) -> Floats:
    """Score per token of the dense model, [N], for `layer` (from 1); larger is kept first.

    Raises:
        InputError: if `impact` says nothing of this model.
        GraphError: if a block does not show what the estimator looks at.
    """
    if impact in _LOOKING:
        return _LOOKING[impact](views, layer)
    positions: Any = impact
    return rank_positions(views.geometry, positions, seed)


def own_attention(views: Views, layer: int) -> Floats:
    """||concat_h P^h V^h||² at each token's row, mean over images."""
    block = views.blocks[layer - 1]
    linear = find_linear(views.cutter, block.attention, block.entering)
    if not isinstance(linear, Linear):
        raise GraphError(f"--impact attention: block {layer}: {linear}; choose another --impact")
    total = np.zeros(views.tokens)
    known = views.entering(block)
    with open_part(views.cutter.cut([block.entering], [linear.source])) as part:
        for rows, outputs in views.feed.run(part, known):
            images = rows.stop - rows.start
            mixed = outputs[linear.source].reshape(images, views.tokens, -1)
            total += np.square(mixed, dtype=np.float64).sum((0, 2))
    return total / len(views.feed.images)


def class_attention(views: Views, layer: int) -> Floats:
    """Attention that a token receives from what the head reads, in the next block."""
    require_readers("class-attention", views.geometry)
    readers = list(views.geometry.head_reads)
    block = views.blocks[min(layer, len(views.blocks) - 1)]
    total = np.zeros(views.tokens)
    model, name = map_part(views.cutter, block, views.tokens)
    with open_part(model) as part:
        for rows, outputs in views.feed.run(part, views.entering(block)):
            maps = per_head(outputs[name], rows.stop - rows.start)[:, :, readers]
            total += maps.mean((1, 2), dtype=np.float64).sum(0)
    return total / len(views.feed.images)


def path(views: Views, layer: int) -> Floats:
    """s_t = diag(G_t) · mean_h ||P_t^h |Z_{t-1}|||² with G_{l-1} = mean_h P_lᵀ G_l P_l."""
    block = views.blocks[layer - 1]
    reach = path_energy(views, layer)
    total = np.zeros(views.tokens)
    model, name = map_part(views.cutter, block, views.tokens)
    known = views.entering(block)
    with open_part(model) as part:
        for rows, outputs in views.feed.run(part, known):
            maps = per_head(outputs[name], rows.stop - rows.start)
            before = np.abs(known[block.entering][rows]).astype(np.float32, copy=False)
            energy = np.square(maps @ before[:, None], dtype=np.float64).sum(-1).mean(1)
            total += (reach[rows] * energy).sum(0)
    return total / len(views.feed.images)


def path_energy(views: Views, layer: int) -> Floats:
    """diag(G) of every image over the tokens that leave `layer`, [n, N].

    The blocks behind `layer` run as they are slimmed already: all tokens are computed, but those
    dropped are hidden from the attention of the next block, which leaves the kept rows as they are
    in the slim graph. Block by block over all images, first up, then down; no maps are stored.
    """
    n, depth = len(views.feed.images), len(views.blocks)
    if layer == depth:
        return np.ones((n, views.tokens))
    streams = _suffix(views, layer)
    last = len(views.keep[depth])
    energy: Floats = views.store.new((n, last, last), np.float64)
    energy[:] = np.eye(last)
    for number in range(depth, layer, -1):
        energy = _down(views, number, layer, streams[number], energy)
    diagonal = np.array(np.diagonal(energy, axis1=-2, axis2=-1))
    later = [array for number, array in streams.items() if number > layer + 1]
    views.store.release(energy, *later)
    return diagonal


def _suffix(views: Views, layer: int) -> dict[int, Array]:
    """What enters each block behind `layer`, all tokens, by the block's number."""
    streams = {layer + 1: views.stream(layer)}
    for number in range(layer + 1, len(views.blocks)):
        block = views.blocks[number - 1]
        end = views.blocks[number].entering
        model = stream_part(views.cutter, block, end, views.tokens, _visible(views, number, layer))
        with open_part(model) as part:
            known = {block.entering: streams[number]}
            streams[number + 1] = views.feed.collect(views.store, part, end, known)
    return streams


def _visible(views: Views, number: int, layer: int) -> Sequence[int] | None:
    """The keys of block `number`, if all layers behind `layer` are slimmed."""
    return None if number == layer + 1 else views.keep[number - 1]


def _down(views: Views, number: int, layer: int, stream: Array, energy: Floats) -> Floats:
    """One step of the recursion: from G behind block `number`, [n, q, q], to G before it."""
    block = views.blocks[number - 1]
    visible = _visible(views, number, layer)
    queries = list(views.keep[number])
    keys = list(range(views.tokens)) if visible is None else list(visible)
    before: Floats = views.store.new((len(energy), len(keys), len(keys)), np.float64)
    model, name = map_part(views.cutter, block, views.tokens, visible)
    with open_part(model) as part:
        for rows, outputs in views.feed.run(part, {block.entering: stream}):
            maps = per_head(outputs[name], rows.stop - rows.start)[:, :, queries]
            before[rows] = _mean_square_form(maps[..., keys], energy[rows])
    views.store.release(energy)
    return before


def _mean_square_form(maps: NDArray[np.float32], energy: Floats) -> Floats:
    """mean_h PᵀGP, [B, k, k], head by head: products of small probabilities need float64."""
    heads = maps.shape[1]
    total = np.zeros((len(maps), maps.shape[-1], maps.shape[-1]))
    for head in range(heads):
        p = maps[:, head].astype(np.float64)
        total += p.swapaxes(-2, -1) @ (energy @ p)
    mean: Floats = total / heads
    return mean


_LOOKING: dict[str, Callable[[Views, int], Floats]] = {
    "attention": own_attention,
    "class-attention": class_attention,
    "path": path,
    "cover": cover,
}
