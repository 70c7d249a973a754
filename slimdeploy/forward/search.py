"""The search of `slim --onnx`: which tokens every layer keeps, and in which numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import onnx

from slimdeploy.counts import TRIED, Shape, ShapeChoice, best_shape, counts_for_budget
from slimdeploy.forward.anatomy import BlockNames
from slimdeploy.forward.choices import ForwardImpact
from slimdeploy.forward.choose import choose_tokens
from slimdeploy.forward.cut import Cutter
from slimdeploy.forward.errors import HeadView, error_of
from slimdeploy.forward.refit import refit_graph
from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.forward.running import Feed, feed_of
from slimdeploy.forward.views import Views
from slimdeploy.graph import GraphOptions, slim_graph
from slimdeploy.graph.tokens.keep import token_order
from slimdeploy.images import spread
from slimdeploy.run_state import RunState
from slimdeploy.schedule import Layer, ModelGeometry
from slimdeploy.store import Array, Store

_EVERY = 4
"""One in so many images is held out where shapes are compared."""


@dataclass
class Search:
    """One search over a dense graph.

    Attributes:
        model: the file's graph; `dense` what `dense_graph` made of it.
        images: all calibration images, [n, C, H, W], on which shapes are compared.
        looked_at: how many of them, evenly drawn, rank the tokens.
        ridge: how weights are solved for; None leaves them.
        options: how the graph will be written.
        saved: what a run that was killed had found.
    """

    model: onnx.ModelProto
    dense: onnx.ModelProto
    geometry: ModelGeometry
    blocks: Sequence[BlockNames]
    images: Array
    looked_at: int
    batch: int
    store: Store
    mac_reduction: float
    multiple_of: int
    impact: ForwardImpact
    ridge: RidgeOptions | None
    options: GraphOptions
    seed: int
    source: str
    saved: RunState | None = None

    def run(self, shape: ShapeChoice, tell: Callable[[str], None]) -> tuple[Shape, list[Layer]]:
        """The shape of the counts, chosen if it is `auto`, and what each layer keeps."""
        feed = self._feed(self.images[spread(len(self.images), self.looked_at)])
        views = Views(self.geometry, Cutter(self.dense), self.blocks, feed, self.store)

        def told(layer: int) -> None:
            tell(f"layer {layer}: keeps {len(views.keep[layer])} tokens")

        try:
            found = self._best(views, tell) if shape == "auto" else shape
            return found, self._choose(views, found, told, self.saved)
        finally:
            self.store.release(*views.streams.values())

    def _best(self, views: Views, tell: Callable[[str], None]) -> Shape:
        """The shape after which the graph is closest to the dense one; a killed run's, again."""

        def closest() -> Shape:
            with parted(self.images, self.store) as (fit, seen):
                fed = self._feed(fit), self._feed(seen)
                wanted = HeadView.of(self.dense, self.blocks, fed[1], self.store)
                found = best_shape(
                    self._counts, lambda tried: self._error(views, tried, *fed, wanted), tell
                )
                self.store.release(wanted.stream)
                return found

        return (self.saved or RunState(None, {})).once("shape", closest, TRIED)

    def _choose(
        self,
        views: Views,
        shape: Shape,
        told: Callable[[int], None] | None = None,
        saved: RunState | None = None,
    ) -> list[Layer]:
        views.keep = {}
        return choose_tokens(views, self.impact, self._counts(shape), self.seed, told, saved)

    def _counts(self, shape: Shape) -> list[int]:
        return counts_for_budget(self.geometry, self.mac_reduction, shape, self.multiple_of)

    def _error(self, views: Views, shape: Shape, fit: Feed, seen: Feed, wanted: HeadView) -> float:
        """How far what the head reads is from the dense graph's, on images held out."""
        keep = [list(layer.keep) for layer in self._choose(views, shape)]
        slim = slim_graph(self.model, keep, self.options, source=self.source).model
        ids = in_order(slim, keep, self.geometry.tokens)
        if self.ridge is not None:
            reads = self.geometry.head_reads
            refit_graph(self.dense, slim, self.blocks, ids, reads, fit, self.store, self.ridge)
        return error_of(slim, self.blocks, seen, wanted, ids[-1], self.store).head_input

    def _feed(self, images: Array) -> Feed:
        return feed_of(self.dense, images, self.batch)


@contextmanager
def parted(images: Array, store: Store) -> Iterator[tuple[Array, Array]]:
    """Images to fit a trial to, and others to measure it on; all for both where there are few."""
    if len(images) < _EVERY:
        yield images, images
        return
    held = range(_EVERY - 1, len(images), _EVERY)
    fitted = [i for i in range(len(images)) if i not in held]
    parts = store.copy(images, fitted), store.copy(images, held)
    yield parts
    store.release(*parts)


def in_order(slim: onnx.ModelProto, keep: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Per block the kept ids in the order in which the slim graph holds them."""
    order = token_order(slim, keep, tokens)
    kept = [set(ids) for ids in keep]
    return [[i for i in order if i in ids] for ids in kept]
