"""From a dense graph and unlabelled images to a slim graph that keeps what it knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx

from slimdeploy.counts import TRIED, Shape, ShapeChoice
from slimdeploy.dynamic import Dynamic, PerImage
from slimdeploy.errors import InputError
from slimdeploy.forward.anatomy import BlockNames, block_names
from slimdeploy.forward.choices import ForwardImpact
from slimdeploy.forward.errors import HeadError, HeadView, error_of, judged_outputs
from slimdeploy.forward.refit import refit_graph, transfer
from slimdeploy.forward.ridge import RidgeOptions, ridge_options
from slimdeploy.forward.running import Feed, batch_size, feed_of, open_whole
from slimdeploy.forward.search import Search, in_order
from slimdeploy.graph import BlockCount, GraphOptions, SlimGraph, dense_graph, slim_graph
from slimdeploy.graph.masked import masked_graph
from slimdeploy.measure.onnx_file import coarsest_weights
from slimdeploy.measure.parity import TOLERANCES, Parity, compare_all
from slimdeploy.run_state import RunState
from slimdeploy.schedule import Layer, ModelGeometry
from slimdeploy.slim.choices import DEFAULT_IMPACT, SEARCH_IMAGES
from slimdeploy.store import Array, Store, open_store

CHECKED = 4
"""Images on which graphs are compared before anything is written."""

WORSE = "the refit made the held-out error larger: give more --images, or a larger --ridge"


@dataclass(frozen=True)
class ForwardRequest:
    """What to make of a dense graph.

    Attributes:
        mac_reduction: budget: the share of MACs to save.
        shape: how the counts fall over the layers, or `auto`: each is tried on three quarters of
            the images, and the closest to the dense graph on the others is taken.
        multiple_of: rounds the counts.
        impact: what ranks the tokens, on `search_images` of the images, evenly drawn.
        scorer: by which each image chooses its patches instead (`slim_dynamic`).
        reconstruct: solve the layers behind dropped tokens anew, or leave all weights.
        ridge: how they are solved for; by default as `ridge_options` has it.
        options: how the graph is written.
    """

    mac_reduction: float
    shape: ShapeChoice = "geometric"
    multiple_of: int = 1
    impact: ForwardImpact = DEFAULT_IMPACT
    scorer: PerImage | None = None
    reconstruct: Literal["refit", "none"] = "refit"
    seed: int = 0
    search_images: int = SEARCH_IMAGES
    ridge: RidgeOptions | None = None
    options: GraphOptions = field(default_factory=GraphOptions)

    @property
    def refit_options(self) -> RidgeOptions:
        """How layers are solved for."""
        return self.ridge or ridge_options(None, by_image=self.scorer is not None)

    def __post_init__(self) -> None:
        if self.search_images < 1:
            raise InputError(f"--search-images {self.search_images}: must be at least 1")


@dataclass(frozen=True)
class ForwardSlim:
    """A slimmed graph and the evidence.

    Attributes:
        model: the slim graph.
        dense: the dense graph with the same weights: with the dropped tokens masked, or merged
            ones averaged, it computes what `model` does.
        shape: how the counts fall, as asked for or as chosen.
        layers: what each layer keeps, first layer first.
        dynamic: by which each image chooses; then `layers` hold what is chosen most often.
        blocks: token counts as read back from `model`.
        parity: the slim graph before the refit, against the dense graph with the dropped tokens
            masked, or its groups averaged.
        final: `model` against `dense` likewise.
        before, after: how far the result is from the dense model's, with its weights and after the
            refit, on images that were held out; None where none was, and `after` without a refit.
        notes: a remark a line.
    """

    model: onnx.ModelProto
    dense: onnx.ModelProto
    shape: Shape
    layers: list[Layer]
    blocks: list[BlockCount]
    parity: Parity
    final: Parity
    before: HeadError | None
    after: HeadError | None
    notes: list[str]
    dynamic: Dynamic | None = None


Progress = Callable[[str], None]


def slim_forward(
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
    """Choose tokens, drop them, and refit what stays.

    Args:
        model: a dense graph with one input, of images; left as it is.
        geometry: of `model`, as a keep schedule holds it.
        images: preprocessed calibration images, [n, C, H, W].
        held_out: images alike that nothing is fitted to; the result is measured on them.
        source: what messages call the model.
        saved: what a run that was killed had found.
        progress: called with a line after each step; there are `steps(geometry, request)`.

    Raises:
        InputError: for a budget that cannot be had, or an estimator that needs more than this.
        GraphError: as the graph stage, or if blocks cannot be cut out.
        GateError: if a graph differs from its reference; nothing is to be shipped then.
    """
    tell = progress or (lambda line: None)
    dense = dense_graph(model, source=source).model
    blocks = block_names(dense)
    batch = batch_size(geometry.heads, geometry.tokens)
    with open_store() as store:
        search = Search(
            model, dense, geometry, blocks, images, min(len(images), request.search_images),
            batch, store, request.mac_reduction, request.multiple_of, request.impact,
            request.refit_options if request.reconstruct == "refit" else None,
            replace(request.options, optimize=False), request.seed, source, saved,
        )  # fmt: skip
        shape, layers = search.run(request.shape, tell)
        keep = [list(layer.keep) for layer in layers]
        slim = slim_graph(model, keep, replace(request.options, optimize=False), source=source)
        checked = feed_of(dense, images[:CHECKED], batch)
        pool = request.options.pool_kept and bool(geometry.head_pools)
        parity = _require(model, slim.model, keep, pool, checked, source)
        tell("graph slimmed and checked")
        seen = None if held_out is None else feed_of(dense, held_out, batch)
        wanted = HeadView.of(dense, blocks, seen, store) if seen else None
        ids = in_order(slim.model, keep, geometry.tokens)
        before = head_error(slim.model, blocks, seen, wanted, ids[-1], store)
        notes, after = list(slim.notes), None
        if request.reconstruct == "refit":
            feed = feed_of(dense, images, batch)
            reads = geometry.head_reads
            done = refit_graph(
                dense, slim.model, blocks, ids, reads, feed, store, request.refit_options,
                lambda block: tell(f"block {block}: refitted"), saved,
            )  # fmt: skip
            notes += done.notes
            transfer(done, dense)
            after = head_error(slim.model, blocks, seen, wanted, ids[-1], store)
        if before and after and after.head_input > before.head_input:
            notes.append(WORSE)
    final = _written(slim, request, source)
    return ForwardSlim(
        model=final.model,
        dense=dense,
        shape=shape,
        layers=layers,
        blocks=final.blocks,
        parity=parity,
        final=_require(dense, final.model, keep, pool, checked, source),
        before=before,
        after=after,
        notes=list(dict.fromkeys([*notes, *final.notes])),
    )


def steps(geometry: ModelGeometry, request: ForwardRequest) -> int:
    """How many lines of progress `slim_forward` gives."""
    trials = len(TRIED) if request.shape == "auto" else 0
    if request.scorer is not None:
        return trials + 2 + geometry.depth * (request.reconstruct == "refit")
    return trials + geometry.depth * (2 if request.reconstruct == "refit" else 1) + 1


def head_error(
    slim: onnx.ModelProto,
    blocks: Sequence[BlockNames],
    feed: Feed | None,
    wanted: HeadView | None,
    ids: Sequence[int],
    store: Store,
) -> HeadError | None:
    """How far `slim` is from the dense graph's `wanted`; None if no image was held out."""
    if feed is None or wanted is None:
        return None
    return error_of(slim, blocks, feed, wanted, ids, store)


def _written(slim: SlimGraph, request: ForwardRequest, source: str) -> SlimGraph:
    """The slim graph as the options ask for it; weights are refitted before they are merged."""
    if not request.options.optimize:
        return slim
    return dense_graph(slim.model, GraphOptions(optimize=True), source=source)


def _require(
    dense: onnx.ModelProto,
    slim: onnx.ModelProto,
    keep: Sequence[Sequence[int]],
    pool_kept: bool,
    feed: Feed,
    source: str,
) -> Parity:
    """The slim graph against the dense one with the dropped tokens masked.

    Raises:
        GateError: if they differ by more than rounding.
    """
    tolerance = TOLERANCES[coarsest_weights(dense)]
    names = judged_outputs(slim)
    reference, found = (
        _answers(model, names, feed)
        for model in (masked_graph(dense, keep, pool_kept=pool_kept), slim)
    )
    parity = compare_all(reference, found, tolerance)
    parity.require(f"{source}: slim against the masked dense graph; nothing was written")
    return parity


def _answers(model: onnx.ModelProto, names: Sequence[str], feed: Feed) -> dict[str, Array]:
    """What `model` says of all images, [n, ...], by these outputs' names."""
    with open_whole(model) as part:
        found = [outputs for _, outputs in feed.run(part)]
    return {name: np.concatenate([outputs[name] for outputs in found]) for name in names}
