"""From a dense graph and unlabelled images to one in which each image chooses its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray

from slimdeploy.counts import TRIED, Shape, best_shape, counts_by_image
from slimdeploy.dynamic import Dynamic, PerImage, choosing_layers
from slimdeploy.errors import InputError
from slimdeploy.files import TEMPORARY
from slimdeploy.forward.anatomy import BlockNames, block_names
from slimdeploy.forward.errors import HeadView, error_of, judged_outputs
from slimdeploy.forward.predictor import fit_predictor
from slimdeploy.forward.refit import Refit, refit_graph, transfer
from slimdeploy.forward.running import Feed, batch_size, feed_of, open_whole
from slimdeploy.forward.search import parted
from slimdeploy.forward.slimming import (
    CHECKED,
    WORSE,
    ForwardRequest,
    ForwardSlim,
    Progress,
    head_error,
)
from slimdeploy.graph import GraphOptions, SlimGraph, dense_graph, slim_graph
from slimdeploy.graph.dynamic import ChoicePlan
from slimdeploy.graph.files.storage import save_model
from slimdeploy.measure.image_ids import with_ids
from slimdeploy.measure.image_pairs import image_pair
from slimdeploy.measure.image_proof import prove_images
from slimdeploy.measure.onnx_file import coarsest_weights
from slimdeploy.measure.parity import TOLERANCES, Parity, worst_parity
from slimdeploy.positions import most_chosen
from slimdeploy.run_state import RunState
from slimdeploy.schedule import ModelGeometry
from slimdeploy.store import Array, Store, open_store


def slim_dynamic(
    model: onnx.ModelProto,
    geometry: ModelGeometry,
    images: Array,
    request: ForwardRequest,
    *,
    held_out: Array | None = None,
    source: str = "model",
    saved: RunState | None = None,
    progress: Progress | None = None,
) -> ForwardSlim:
    """Fit the scorers, write the graph that chooses by them, and refit what stays.

    Args and errors: as `slim_forward`; `request.scorer` says what chooses.
    """
    tell, saved = progress or (lambda line: None), saved or RunState(None, {})
    dense = dense_graph(model, source=source).model
    with open_store() as store:
        blocks, reads = block_names(dense), geometry.head_reads
        maker = _Maker(model, dense, geometry, blocks, images, store, request, source)
        shape = maker.shape(tell, saved)
        plan = maker.plan(images, shape)
        tell(f"{plan.dynamic.scorer}: ready")
        slim = maker.graph(plan)
        parity = _require(model, slim.model, plan, images[:CHECKED], source)
        tell("graph slimmed and checked")
        seen = None if held_out is None else maker.feed(held_out)
        wanted = HeadView.of(dense, blocks, seen, store) if seen else None
        before = head_error(slim.model, blocks, seen, wanted, reads, store)
        notes, after = list(slim.notes), None
        if request.reconstruct == "refit":
            done = maker.refit(
                slim.model, plan, images, lambda block: tell(f"block {block}: refitted"), saved
            )
            notes += done.notes
            transfer(done, dense)
            after = head_error(slim.model, blocks, seen, wanted, reads, store)
        if before and after and after.head_input > before.head_input:
            notes.append(WORSE)
        shares = _shares(slim.model, plan, maker.feed(images))
    final = _written(dense, slim, plan, request.options, source)
    return ForwardSlim(
        model=final.model,
        dense=dense,
        shape=shape,
        layers=most_chosen(geometry, shares, list(plan.counts)),
        blocks=final.blocks,
        parity=parity,
        final=_require(dense, final.model, plan, images[:CHECKED], source),
        before=before,
        after=after,
        notes=list(dict.fromkeys([*notes, *final.notes])),
        dynamic=plan.dynamic,
    )


@dataclass
class _Maker:
    """Makes dynamic graphs of one dense graph.

    Attributes:
        model: the file's graph; `dense` what `dense_graph` made of it.
        images: all calibration images, [n, C, H, W], on which shapes are compared.
    """

    model: onnx.ModelProto
    dense: onnx.ModelProto
    geometry: ModelGeometry
    blocks: Sequence[BlockNames]
    images: Array
    store: Store
    request: ForwardRequest
    source: str

    @property
    def scorer(self) -> PerImage:
        """What chooses."""
        if self.request.scorer is None:
            raise ValueError("no scorer: positions that are static are for slim_forward")
        return self.request.scorer

    def shape(self, tell: Callable[[str], None], saved: RunState) -> Shape:
        """The shape of the counts: as asked for, or the closest to the dense graph."""
        if self.request.shape != "auto":
            return self.request.shape
        return saved.once("shape", lambda: self._closest(tell), TRIED)

    def plan(self, images: Array, shape: Shape) -> ChoicePlan:
        """How many tokens stay, and a scorer fitted to `images`."""
        geometry, counts = self.geometry, self._counts(shape)
        prefix = len(geometry.prefix)
        dynamic = Dynamic(scorer=self.scorer)
        if self.scorer == "predictor":
            chooses = choosing_layers(counts, geometry.tokens, prefix)
            weights = fit_predictor(
                self.dense, geometry, self.blocks, chooses, images, self.batch, self.store
            )
            dynamic = Dynamic(scorer="predictor", weights=weights)
        return ChoicePlan(dynamic, tuple(counts), geometry.tokens, prefix, geometry.head_reads)

    def graph(self, plan: ChoicePlan) -> SlimGraph:
        """The dynamic graph, with the dense one's weights."""
        options = replace(self.request.options, optimize=False)
        return slim_graph(self.model, plan.places, options, source=self.source, plan=plan)

    def refit(
        self,
        slim: onnx.ModelProto,
        plan: ChoicePlan,
        images: Array,
        told: Callable[[int], None] | None = None,
        saved: RunState | None = None,
    ) -> Refit:
        """Refit the weights of `slim` in place for its own choices."""
        return refit_graph(
            self.dense, slim, self.blocks, plan.places, self.geometry.head_reads,
            self.feed(images), self.store, self.request.refit_options, told, saved, plan,
        )  # fmt: skip

    def feed(self, images: Array) -> Feed:
        """Batches of images."""
        return feed_of(self.dense, images, self.batch)

    @property
    def batch(self) -> int:
        """Images at a time."""
        return batch_size(self.geometry.heads, self.geometry.tokens)

    def _closest(self, tell: Callable[[str], None]) -> Shape:
        """Slim by each shape, and take the one with the least error on images held out."""
        with parted(self.images, self.store) as (fit, seen):
            feed = self.feed(seen)
            wanted = HeadView.of(self.dense, self.blocks, feed, self.store)
            found = best_shape(
                self._counts, lambda tried: self._tried(tried, fit, feed, wanted), tell
            )
            self.store.release(wanted.stream)
            return found

    def _counts(self, shape: Shape) -> list[int]:
        wanted, multiple = self.request.mac_reduction, self.request.multiple_of
        return counts_by_image(self.scorer, self.geometry, wanted, shape, multiple)

    def _tried(self, shape: Shape, fit: Array, seen: Feed, wanted: HeadView) -> float:
        """The error of a shape, on images that it was not fitted to."""
        plan = self.plan(fit, shape)
        slim = self.graph(plan).model
        if self.request.reconstruct == "refit":
            self.refit(slim, plan, fit)
        reads = self.geometry.head_reads
        return error_of(slim, self.blocks, seen, wanted, reads, self.store).head_input


def require_single_reads(geometry: ModelGeometry, source: str) -> None:
    """Refuse a head that takes an average: which tokens it averages over would be the image's own.

    Raises:
        InputError: naming `source`.
    """
    if geometry.head_pools:
        raise InputError(
            f"{source}: its head pools over {len(geometry.head_pools)} tokens; --dynamic is for "
            "heads that read single tokens: leave it out, or choose another model"
        )


def _require(
    dense: onnx.ModelProto, slim: onnx.ModelProto, plan: ChoicePlan, images: Array, source: str
) -> Parity:
    """The slim graph against the dense one with each image's own choices masked.

    Raises:
        GateError: if they differ by more than rounding, or a choice is not the best.
    """
    tolerance = TOLERANCES[coarsest_weights(dense)]
    with TemporaryDirectory(prefix=TEMPORARY) as folder:
        path = Path(folder) / "slim.onnx"
        save_model(slim, path)
        proof = prove_images(image_pair(dense, slim, path, plan), [images], tolerance, None)
    parity = worst_parity(proof.outputs[name] for name in judged_outputs(slim))
    parity.require(f"{source}: slim against the dense graph of its choices; nothing was written")
    return parity


def _shares(slim: onnx.ModelProto, plan: ChoicePlan, feed: Feed) -> NDArray[np.float64]:
    """How often each token is kept in each layer, [L, N] of shares of the images."""
    probed, ids_of = with_ids(slim, plan)
    kept = np.zeros((len(plan.counts), plan.tokens))
    with open_whole(probed) as part:
        for images, outputs in feed.run(part):
            ids = ids_of(outputs, images.stop - images.start)
            for layer, chosen in enumerate(ids.kept):
                kept[layer] += np.bincount(chosen.ravel(), minlength=plan.tokens)
    return kept / len(feed.images)


def _written(
    dense: onnx.ModelProto, slim: SlimGraph, plan: ChoicePlan, options: GraphOptions, source: str
) -> SlimGraph:
    """The graph as the options ask for it; weights are refitted before they are merged."""
    if not options.optimize:
        return slim
    return slim_graph(dense, plan.places, options, source=source, plan=plan)
