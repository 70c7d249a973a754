"""The predictor of `slim --dynamic`, fitted by forward passes of a graph's blocks.

The regression of the PyTorch path (`slim/dynamic/predictor.py`): per layer a linear map from the
standardised patch to the logarithm of the attention that the tokens which the head reads pay it in
all later blocks, features and targets centred per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from slimdeploy.dynamic import LEAST_ATTENTION, PREDICTOR_RIDGE
from slimdeploy.forward.anatomy import BlockNames
from slimdeploy.forward.cut import Cutter
from slimdeploy.forward.maps import map_part, per_head
from slimdeploy.forward.running import feed_of, open_part
from slimdeploy.forward.views import Views
from slimdeploy.measure.choices import standardised
from slimdeploy.schedule import ModelGeometry
from slimdeploy.store import Array, Store

_AT_A_TIME = 64
"""Images whose streams of all layers exist at once."""

Floats = NDArray[np.float64]
Weights = tuple[tuple[float, ...] | None, ...]


@dataclass
class _Normal:
    """Normal equations of one layer, in float64."""

    left: Floats
    right: Floats

    @classmethod
    def empty(cls, width: int) -> _Normal:
        """Of no image."""
        return cls(np.zeros((width, width)), np.zeros(width))

    def add(self, patches: Array, paid: Floats) -> None:
        """Add patches that enter the layer, [B, N, D], and what is paid them later, [B, N]."""
        features = _centred(standardised(patches).astype(np.float64))
        flat = features.reshape(-1, features.shape[-1])
        self.left += flat.T @ flat
        self.right += flat.T @ _centred(np.log(paid + LEAST_ATTENTION)).reshape(-1)

    def solve(self) -> tuple[float, ...]:
        """The weights, [D], of length 1: their scale does not change a choice."""
        ridge = PREDICTOR_RIDGE * np.diagonal(self.left).mean() * np.eye(len(self.left))
        weight = np.linalg.solve(self.left + ridge, self.right)
        weight /= max(float(np.linalg.norm(weight)), LEAST_ATTENTION)
        return tuple(float(np.float32(w)) for w in weight)


def fit_predictor(
    dense: onnx.ModelProto,
    geometry: ModelGeometry,
    blocks: Sequence[BlockNames],
    chooses: Sequence[bool],
    images: Array,
    batch: int,
    store: Store,
) -> Weights:
    """Weights [D] of every layer that chooses patches; None for the others.

    Args:
        dense: the graph that `dense_graph` gave, and its `blocks`.
        chooses: per layer whether it chooses.
        images: preprocessed calibration images, [n, C, H, W].

    Raises:
        GraphError: if attention probabilities cannot be read.
    """
    cutter, prefix = Cutter(dense), len(geometry.prefix)
    normals = [_Normal.empty(geometry.width) for _ in blocks]
    for start in range(0, len(images), _AT_A_TIME):
        feed = feed_of(dense, images[start : start + _AT_A_TIME], batch)
        views = Views(geometry, cutter, blocks, feed, store)
        later = np.zeros((len(feed.images), geometry.patches))
        for block, normal, chosen in reversed(list(zip(blocks, normals, chooses, strict=True))):
            if chosen:
                stream = views.stream(block.number - 1)
                for rows in feed.rows():
                    normal.add(stream[rows][:, prefix:].astype(np.float32), later[rows])
            later += _paid(views, block)[:, prefix:]
        store.release(*views.streams.values())
    return tuple(
        normal.solve() if chosen else None for normal, chosen in zip(normals, chooses, strict=True)
    )


def _paid(views: Views, block: BlockNames) -> Floats:
    """Attention that the tokens which the head reads pay to each token in a block, [n, N]."""
    part, name = map_part(views.cutter, block, views.tokens)
    reads, found = list(views.geometry.head_reads), []
    with open_part(part) as running:
        for rows, outputs in views.feed.run(running, views.entering(block)):
            maps = per_head(outputs[name], rows.stop - rows.start)[:, :, reads]
            found.append(maps.astype(np.float64).mean((1, 2)))
    return np.concatenate(found)


def _centred(values: Floats) -> Floats:
    """Per image, over its patches: axis 1."""
    centred: Floats = values - values.mean(1, keepdims=True)
    return centred
