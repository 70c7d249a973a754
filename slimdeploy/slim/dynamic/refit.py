"""Closed-form recovery of a dynamic model: the static form's ridge regression, rows per image."""

from __future__ import annotations

from typing import Any

import torch

from slimdeploy.forward.ridge import RidgeOptions, ridge_options
from slimdeploy.run_state import RunState
from slimdeploy.slim.batches import Held
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.dynamic.model import DynamicVit, take_ids
from slimdeploy.slim.refit import Kept, refit_blocks, token_weights


def refit_dynamic(
    state: Calibration,
    slim: DynamicVit,
    options: RidgeOptions | None = None,
    progress: Any = None,
    saved: RunState | None = None,
) -> None:
    """Refit all blocks of `slim.dense` in place, first to last.

    As `slimdeploy.slim.refit.refit_model`, except that each image's rows are those that it chooses
    on the way, from the refitted stream, and its targets the dense stream's at the same tokens.
    `progress(layer)` is called after each layer; `saved` holds the blocks that a killed run had
    solved.

    Raises:
        InputError: if neither memory nor the disk has room for the activations.
    """
    options = options or ridge_options(None, True)
    ids = [torch.arange(state.tokens).expand(len(x), -1) for x in state.batches()]

    def kept(index: int, stream: Held) -> Kept:
        rows = [slim.rows(index, x) for x in stream]
        ids[:] = [take_ids(held, chosen) for held, chosen in zip(ids, rows, strict=True)]
        # Prefix tokens come first; which patches follow does not matter to their weight.
        weights = token_weights(ids[0][0].tolist(), state.geometry.head_reads, options)
        return Kept(rows, list(ids), weights)

    refit_blocks(state, slim.dense, kept, options, progress, saved)
