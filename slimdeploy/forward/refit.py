"""Closed-form recovery of a slim graph, from forward passes of its blocks.

The same regression as the PyTorch path's (`slim/refit.py`), with the same weights of tokens: per
block, first to last, the attention's output projection and then the MLP's second layer are solved
towards the dense graph's residual stream at the kept tokens. Each block reads what the refitted
blocks before it give, so that it also corrects what they could not.

Two streams of activations pass through the blocks, the dense and the slim one. No more than four
arrays over all images exist at a time, however many blocks there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from slimdeploy.errors import GraphError
from slimdeploy.forward.anatomy import BlockNames
from slimdeploy.forward.cut import Cutter
from slimdeploy.forward.kept import Choices, Kept, Merges
from slimdeploy.forward.linear import Floats, Linear, find_linear
from slimdeploy.forward.ridge import Normal, RidgeOptions
from slimdeploy.forward.running import Feed, open_part
from slimdeploy.graph.dynamic import ChoicePlan
from slimdeploy.run_state import RunState
from slimdeploy.store import Array, Store


@dataclass
class Refit:
    """One refit under way; `refit_graph` runs it.

    Attributes:
        dense: the dense graph, whose streams are the targets.
        slim: the graph that is changed.
        reads: ids of the tokens that the head reads.
        saved: layers that a killed run had solved: they are not solved again.
        notes: a line for each layer that was left as it is.
        changed: the streams before and behind each refitted layer, by name.
    """

    dense: Cutter
    slim: Cutter
    reads: Sequence[int]
    feed: Feed
    store: Store
    options: RidgeOptions
    saved: RunState
    notes: list[str] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)

    def half(
        self,
        block: int,
        start: str,
        end: str,
        streams: tuple[Array | None, Array | None],
        kept: Kept | None,
        beside: Mapping[str, Array] | None = None,
    ) -> tuple[Array, Array]:
        """Refit the layer that adds to the stream between `start` and `end`, two of its tensors.

        Args:
            block: number of the block, from 1.
            streams: dense and slim activations of `start`; None runs from the images.
            kept: what the block keeps, in the slim graph's order; None only runs it.
            beside: what the slim graph's nodes read beside `start`, over all images, by name.

        Returns:
            Dense and slim activations of `end`; those of `start` are given back to the store.
        """
        known, mine = ({start: x} if x is not None else {} for x in streams)
        with open_part(self.dense.cut([*known], [end])) as part:
            target = self.feed.collect(self.store, part, end, known)
        mine.update(beside or {})
        if kept is not None:
            layer = find_linear(self.slim, end, start)
            if isinstance(layer, Linear):
                layer.replace(self.slim, *self._solved(layer, kept, end, mine, target))
                self.changed.append((start, end))
            else:
                self.notes.append(f"block {block} keeps weights as they are: {layer}")
        with open_part(self.slim.cut([*mine], [end])) as part:
            found = self.feed.collect(self.store, part, end, mine)
        self.store.release(*streams)
        return target, found

    def _solved(
        self, layer: Linear, kept: Kept, end: str, mine: dict[str, Array], target: Array
    ) -> tuple[Floats, Floats | None]:
        """Weight and bias for the layer, recalled or solved for."""
        weight, bias = layer.values(self.slim)
        values = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        name = f"refit-{len(self.changed):03d}"
        known = self.saved.recall_arrays(name, {part: x.shape for part, x in values.items()})
        if known is None:
            change, shift = self._solve(layer, kept, end, mine, target, len(weight))
            known = {"weight": weight + change}
            if bias is not None and shift is not None:
                known["bias"] = bias + shift
            self.saved.remember_arrays(name, known)
        return known["weight"], known.get("bias")

    def _solve(
        self,
        layer: Linear,
        kept: Kept,
        end: str,
        mine: dict[str, Array],
        target: Array,
        width: int,
    ) -> tuple[Floats, Floats | None]:
        """How weight and bias change; the layer reads `width` features."""
        normal = Normal(layer.bias is not None, judged=self.options.strength == "auto")
        importance = np.where(np.isin(kept.ids, self.reads), self.options.read_weight, 1.0)
        importance = np.broadcast_to(importance, (len(target), importance.shape[-1]))
        ends = [name for name in (layer.source, end) if name not in mine]
        with open_part(self.slim.cut([*mine], ends)) as part:
            for rows, outputs in self.feed.run(part, mine):
                missing = kept.wanted(target, rows) - outputs[end]
                source = outputs.get(layer.source)
                inputs = mine[layer.source][rows] if source is None else source
                inputs = inputs.reshape(*missing.shape[:2], width)
                normal.add_images(inputs, missing, importance[rows])
        return normal.solve(self.options.strength)


def refit_graph(
    dense: onnx.ModelProto,
    slim: onnx.ModelProto,
    blocks: Sequence[BlockNames],
    keep: Sequence[Sequence[int]],
    reads: Sequence[int],
    feed: Feed,
    store: Store,
    options: RidgeOptions | None = None,
    progress: Callable[[int], None] | None = None,
    saved: RunState | None = None,
    plan: ChoicePlan | None = None,
) -> Refit:
    """Refit the weights of `slim` in place.

    Args:
        dense: the graph that `dense_graph` gave.
        slim: what `slim_graph` made of the same file.
        blocks: `block_names(dense)`.
        keep: per block the kept ids, in the order of the slim graph's tokens; with a `plan` as
            many of any.
        reads: ids of the tokens that the head reads: they weigh more.
        feed: the calibration images.
        progress: called with the number of each finished block.
        saved: layers that a killed run had solved.
        plan: by which `slim` lets each image choose its tokens.

    Returns:
        What was refitted, and a line for each layer that was left as it is.

    Raises:
        GraphError: if the graphs cannot be cut at the blocks.
    """
    options = options or RidgeOptions()
    saved = saved or RunState(None, {})
    state = Refit(Cutter(dense), Cutter(slim), reads, feed, store, options, saved)
    decided = _decided(state, plan)
    streams: tuple[Array | None, Array | None] = (None, None)
    exact = True
    for block in blocks:
        found = Kept(keep[block.number - 1])
        beside: Mapping[str, Array] = {}
        if decided:
            known = {} if streams[1] is None else {block.entering: streams[1]}
            found, beside = decided.of(block.number, known), decided.beside
            exact = exact and not decided.changes_keys(block.number)
        # A block of which all keys are left, behind blocks alike, computes what the dense one does.
        kept = None if exact else found
        streams = state.half(block.number, block.entering, block.attention, streams, kept, beside)
        if block.output is not None:
            streams = state.half(block.number, block.attention, block.output, streams, kept)
        exact = exact and len(keep[block.number - 1]) == len(streams[0][0])
        if progress is not None:
            progress(block.number)
    store.release(*streams)
    if blocks[-1].output is None:
        state.notes.append(f"block {len(blocks)}: no sum behind its MLP was found to refit")
    return state


def _decided(state: Refit, plan: ChoicePlan | None) -> Choices | Merges | None:
    """What each image keeps or merges; None for positions that are static."""
    if plan is None:
        return None
    kind = Merges if plan.dynamic.merges else Choices
    return kind(state.slim, plan, state.feed)


def transfer(done: Refit, dense: onnx.ModelProto) -> None:
    """Write the refitted weights into the dense graph that they were made for.

    With the dropped tokens masked out, it then computes what the refitted slim graph does.
    """
    target = Cutter(dense)
    for start, end in done.changed:
        new, old = find_linear(done.slim, end, start), find_linear(target, end, start)
        if not isinstance(new, Linear) or not isinstance(old, Linear):
            raise GraphError(f"the layer before tensor '{end}' is no longer found")
        old.replace(target, *new.values(done.slim))
