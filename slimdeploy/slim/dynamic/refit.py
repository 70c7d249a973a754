"""Closed-form recovery of a dynamic model: the static form's ridge regression, rows per image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from slimdeploy.forward.ridge import RidgeOptions, ridge_options
from slimdeploy.run_state import RunState
from slimdeploy.slim.batches import Held
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.dynamic.merging import Groups, MergeVit
from slimdeploy.slim.dynamic.model import DynamicVit, take_ids
from slimdeploy.slim.model import select
from slimdeploy.slim.refit import Kept, refit_blocks, token_weights


def refit_dynamic(
    state: Calibration,
    slim: DynamicVit | MergeVit,
    options: RidgeOptions | None = None,
    progress: Any = None,
    saved: RunState | None = None,
) -> None:
    """Refit all blocks of `slim.dense` in place, first to last.

    As `slimdeploy.slim.refit.refit_model`, except that each image's rows are those that it chooses
    on the way, from the refitted stream, and its targets the dense stream's at the same tokens; of
    merged ones their mean.
    `progress(layer)` is called after each layer; `saved` holds the blocks that a killed run had
    solved.

    Raises:
        InputError: if neither memory nor the disk has room for the activations.
    """
    options = options or ridge_options(None, True)
    if isinstance(slim, MergeVit):
        kept = _merged(state, slim, options)
    else:
        kept = _chosen(state, slim, options)
    refit_blocks(state, slim.dense, kept, options, progress, saved)


_Keeps = Callable[[int, Held, Callable[[], Held]], Kept]


def _chosen(state: Calibration, slim: DynamicVit, options: RidgeOptions) -> _Keeps:
    """What each image chooses, block by block."""
    ids = [torch.arange(state.tokens).expand(len(x), -1) for x in state.batches()]

    def kept(index: int, stream: Held, _: Callable[[], Held]) -> Kept:
        rows = [slim.rows(index, x) for x in stream]
        ids[:] = [take_ids(held, chosen) for held, chosen in zip(ids, rows, strict=True)]
        # Prefix tokens come first; which patches follow does not matter to their weight.
        weights = token_weights(ids[0][0].tolist(), state.geometry.head_reads, options)
        return Kept(rows, list(ids), weights)

    return kept


def _merged(state: Calibration, slim: MergeVit, options: RidgeOptions) -> _Keeps:
    """What each image merges, block by block."""
    groups: list[Groups] = []

    def kept(index: int, stream: Held, hold: Callable[[], Held]) -> Kept:
        if not groups:
            groups.extend(Groups.single(x) for x in stream)
        entering, biases, picks = hold(), list[Tensor](), list[Callable[[Tensor], Tensor]]()
        rows = None
        for batch, x in enumerate(stream):
            x, found = slim.enter(index, x, groups[batch], slim.moves(index, x))
            entering.append(x)
            rows = slim.rows(index, x)
            biases.append(found.bias())
            groups[batch] = found.only(rows)
            # Prefix tokens are their own mean, and their rows among the groups their ids.
            picks.append(found.means if rows is None else partial(select, rows=rows))
        weights = token_weights(groups[0].ids[0].tolist(), state.geometry.head_reads, options)
        return Kept(rows, None, weights, entering, biases, picks)

    return kept
