"""What the search looks at: calibration images running through a dense and a half-slimmed model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from slimdeploy.schedule import ModelGeometry
from slimdeploy.slim.model import embed, rows_among, slim_block
from slimdeploy.slim.types import Vit

_MAP_BYTES = 256 << 20


@dataclass
class Calibration:
    """The state of a top-down search over calibration images.

    Layers are counted from 1, as in the paper; layer l is `blocks[l - 1]`. `keep[l]` exists for the
    layers that are already slimmed. Earlier layers are dense.

    Attributes:
        dense: the model with its original weights, in eval mode; never changed.
        images: preprocessed images, [n, C, H, W].
        batch_size: images run at once (default: 16, fewer where attention maps are large).
        cache_bytes: memory that dense streams may take, of the search and then of the refit.
        keep: global ids kept by the layers from `L` down to the one last decided.
    """

    dense: Vit
    geometry: ModelGeometry
    images: Tensor
    batch_size: int = 0
    cache_bytes: int = 2 << 30
    keep: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.depth, self.tokens = self.geometry.depth, self.geometry.tokens
        self.batch_size = self.batch_size or fitting_batch(self.geometry.heads, self.tokens)
        self._cache: list[list[Tensor]] | None = None

    @cached_property
    def slim(self) -> Any:
        """A copy of `dense`, whose blocks reconstruction may change; made when first asked for."""
        return copy.deepcopy(self.dense).eval()

    def batches(self) -> Iterator[Tensor]:
        """The images, batch by batch."""
        yield from self.images.split(self.batch_size)

    def streams(self, *layers: int) -> Iterator[tuple[Tensor, ...]]:
        """Per batch the dense Z_l, [B, N, D], after each of the asked layers (0: embedding).

        Kept in memory after the first pass if they fit into `cache_bytes`, else computed again.
        """
        if self._cache is None and self.holds_streams:
            self._cache = [self._dense_streams(images, self.depth) for images in self.batches()]
        if self._cache is not None:
            yield from (tuple(batch[layer] for layer in layers) for batch in self._cache)
            return
        for images in self.batches():
            batch = self._dense_streams(images, max(layers))
            yield tuple(batch[layer] for layer in layers)

    @property
    def holds_streams(self) -> bool:
        """Whether `streams` keeps what it has computed."""
        return self._stream_bytes() <= self.cache_bytes

    def forget_streams(self) -> None:
        """Give their memory to what comes next."""
        self._cache = None

    @torch.no_grad()
    def _dense_streams(self, images: Tensor, last: int) -> list[Tensor]:
        found = [embed(self.dense, images)]
        for block in self.dense.blocks[:last]:
            found.append(slim_block(block, found[-1], None))
        return found

    def _stream_bytes(self) -> int:
        return 4 * len(self.images) * self.tokens * self.geometry.width * (self.depth + 1)

    def rows(self, layer: int) -> Tensor | None:
        """Local rows of what a slimmed layer keeps, among those the layer before keeps."""
        before = self.keep.get(layer - 1, range(self.tokens))
        return rows_among(self.keep[layer], before)

    def suffix(self, x: Tensor, layer: int) -> Iterator[tuple[int, Tensor]]:
        """Run the slimmed layers after `layer` on Z_layer: yields each layer with its *input*."""
        for later in range(layer + 1, self.depth + 1):
            yield later, x
            x = slim_block(self.slim.blocks[later - 1], x, self.rows(later))

    @property
    def protected(self) -> list[int]:
        """Tokens that no layer but the last drops: the prefix, few and read by all others."""
        return list(range(len(self.geometry.prefix)))


def fitting_batch(heads: int, tokens: int) -> int:
    """Images a batch, at most 16, whose maps of one layer fit into `_MAP_BYTES` in float64."""
    return max(1, min(16, _MAP_BYTES // (8 * heads * tokens**2)))
