"""Which tokens every layer keeps: top-down, within a budget of counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from slimdeploy.forward.choices import ForwardImpact
from slimdeploy.forward.impact import Floats, scores
from slimdeploy.forward.views import Views
from slimdeploy.run_state import RunState
from slimdeploy.schedule import Layer


def choose_tokens(
    views: Views,
    impact: ForwardImpact,
    counts: Sequence[int],
    seed: int,
    progress: Callable[[int], None] | None = None,
    saved: RunState | None = None,
) -> list[Layer]:
    """What each layer keeps, first layer first; `views.keep` is filled in on the way.

    The last layer keeps what the head reads (or, where the head pools, the best of what it pools
    over); each layer before it what the next one keeps, the prefix tokens, and the best-scored
    others. Scores are recorded where they look at images.

    Args:
        counts: tokens to keep per layer.
        progress: called with the number of each decided layer.
        saved: decided layers of a run that was killed.

    Raises:
        InputError, GraphError: as `scores`.
    """
    found: list[Layer] = []
    for layer in range(len(views.blocks), 0, -1):
        done = saved.recall_layer(layer) if saved else None
        if done is None:
            done = _decide(views, impact, layer, counts[layer - 1], seed)
            if saved:
                saved.remember_layer(layer, done)
        found.append(done)
        views.keep[layer] = list(done.keep)
        if progress is not None:
            progress(layer)
    return found[::-1]


def _decide(views: Views, impact: ForwardImpact, layer: int, count: int, seed: int) -> Layer:
    last = layer == len(views.blocks)
    if last and not views.geometry.head_pools:
        return Layer(keep=views.geometry.head_reads)
    score = scores(views, impact, layer, seed)
    if last:
        keep = _last(views, score, count)
    else:
        prefix = range(len(views.geometry.prefix))
        keep = top_up(score, [*views.keep[layer + 1], *prefix], count)
    return Layer(keep=tuple(keep), scores=tuple(float(f"{s:.6g}") for s in score))


def _last(views: Views, score: Floats, count: int) -> list[int]:
    """What the head reads, and the best of what it pools over."""
    needed = {*views.geometry.head_reads, *views.geometry.head_pools}
    among = np.full(len(score), -np.inf)
    among[sorted(needed)] = score[sorted(needed)]
    return top_up(among, views.geometry.head_reads, count)


def top_up(score: Floats, floor: Sequence[int], count: int) -> list[int]:
    """`floor` and the best-scored other tokens, `count` in all (more if the floor is larger)."""
    kept = sorted({*floor})
    free = np.array(score, np.float64)
    free[kept] = -np.inf
    best = np.argsort(-free, kind="stable")[: max(count - len(kept), 0)]
    return sorted({*kept, *(int(i) for i in best)})
