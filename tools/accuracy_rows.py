"""Rows of the accuracy records that are set against each other: same counts, images and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slimdeploy.measure.stats import Interval, mean_interval
from tools.hits import unpacked

DEFAULT = "cover"
CONTROLS = ("joint", "path", "attention", "class-attention", "grid", "centre", "random")
PER_IMAGE = ("predictor", "merge", "evit", "tome")
COMPARED = ("geometric", 192)
"""Counts and images: geometric counts are those of the budget alone, whatever ranks the tokens."""

Row = dict[str, Any]
Measure = Literal["right", "agrees"]
Hits = NDArray[np.float64]
BySeed = dict[int, Hits]


def hits(digits: str, n: int) -> Hits:
    """Of which of `n` test images it holds, [n] of 0 and 1."""
    return unpacked(digits, n).astype(np.float64)


def estimators(
    rows: list[Row], stage: str, measure: Measure = "right", names: Sequence[str] = CONTROLS
) -> Iterator[tuple[float, dict[str, BySeed]]]:
    """Per budget, ascending, the hits of each estimator by seed, if the default is among them.

    Seeds that were judged on other test images than the default's first are left out.

    Args:
        measure: hits are images "right" by their labels, or those where it "agrees" with dense.
        names: of the estimators beside the default.
    """
    for budget in sorted({row["mac_reduction"] for row in rows}):
        found: dict[str, BySeed] = {}
        for row in rows:
            key = (row["mac_reduction"], row["shape"], row["images"])
            known = row["impact"] in (DEFAULT, *names) and stage in row
            if known and key == (budget, *COMPARED):
                judged = hits(row[stage][measure], row[stage]["n"])
                found.setdefault(row["impact"], {})[row["seed"]] = judged
        if DEFAULT in found:
            n = len(next(iter(found[DEFAULT].values())))
            alike = {
                name: {seed: judged for seed, judged in seeds.items() if len(judged) == n}
                for name, seeds in found.items()
            }
            yield budget, {name: seeds for name, seeds in alike.items() if seeds}


def differences(one: dict[Any, Hits], two: dict[Any, Hits]) -> list[Hits]:
    """One minus the other, image by image, [n], for each key (as a seed) that both have."""
    return [one[key] - two[key] for key in sorted(one.keys() & two.keys())]


def interval(gains: list[Hits]) -> Interval:
    """Of the mean difference: images are drawn, seeds averaged."""
    return mean_interval(np.mean(gains, axis=0), seed=0)
