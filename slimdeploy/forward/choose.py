"""Which tokens every layer keeps: top-down, within a budget of counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from slimdeploy.forward.choices import ForwardImpact
from slimdeploy.forward.impact import Floats, scores
from slimdeploy.forward.views import Views
from slimdeploy.schedule import Layer


def choose_tokens(
    views: Views,
    impact: ForwardImpact,
    counts: Sequence[int],
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[Layer]:
    """What each layer keeps, first layer first; `views.keep` is filled in on the way.

    The last layer keeps what the head reads (or, where the head pools, the best of what it pools
    over); each layer before it what the next one keeps, the prefix tokens, and the best-scored
    others. Scores are recorded where they look at images.

    Args:
        counts: tokens to keep per layer.
        progress: called with the number of each decided layer.

    Raises:
        InputError, GraphError: as `scores`.
    """
    depth, prefix = len(views.blocks), range(len(views.geometry.prefix))
    found: dict[int, Layer] = {}
    for layer in range(depth, 0, -1):
        if layer == depth and not views.geometry.head_pools:
            found[layer] = Layer(keep=views.geometry.head_reads)
        else:
            score = scores(views, impact, layer, seed)
            floor = [*views.keep[layer + 1], *prefix] if layer < depth else []
            keep = (
                top_up(score, floor, counts[layer - 1])
                if layer < depth
                else _last(views, score, counts[-1])
            )
            shown = tuple(float(f"{s:.6g}") for s in score)
            found[layer] = Layer(keep=tuple(keep), scores=shown)
        views.keep[layer] = list(found[layer].keep)
        if progress is not None:
            progress(layer)
    return [found[layer] for layer in range(1, depth + 1)]


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
