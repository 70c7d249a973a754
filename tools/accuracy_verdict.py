"""The default estimator against all others: the first tables of the page of accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tools.accuracy_rows import (
    CONTROLS,
    DEFAULT,
    PER_IMAGE,
    Hits,
    Measure,
    differences,
    estimators,
    interval,
)

STAGES = {"dense_weights": "dense weights", "refit": "refit", "finetuned": "fine-tuned"}

TEXT = f"""
## `{DEFAULT}` against the others

How many points of top-1 each loses to `{DEFAULT}` (+: gains) at the same counts, 192 images and the
same seeds; bold where the 95 % interval of the paired difference leaves zero out. It is an interval
over test images: how other draws of calibration images would do, only more seeds tell. `path` is
the paper's score.

![Points of top-1 lost against MACs saved, an estimator a line, for each model](accuracy.png)
"""
AGREEMENT = """
### By agreement with the dense model

The same of the share of images, in points, that get the dense model's class: what it gets wrong
and a slim model right by chance counts for nothing here.
"""
PER_IMAGE_TEXT = f"""
### Per-image choice

Points of top-1 that models which choose or merge tokens by image gain on `{DEFAULT}` (-: lose);
bold as above. `predictor` is `slim --dynamic predictor` with the same shape of counts, its scoring
within the MACs, and `merge` is `slim --dynamic merge`, its similarities within them; their refits
are for their own choices, with `--ridge auto`. `evit` and `tome` are written from their papers
(`tools/peers`), have no refit and start fine-tuning from the dense weights; the MACs of ToMe's
similarities are not counted.
"""


class Against(NamedTuple):
    """A control's mean difference to the default in points, and its interval."""

    gain: float
    low: float
    high: float
    seeds: int

    @property
    def told(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        shown = f"{self.gain:+.2f}"
        return f"**{shown}**" if self.told else shown


def verdict(records: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of all tables; those of static positions count by stage who is ahead."""
    by_label, counted = _table(records, "right", CONTROLS)
    by_dense, agreeing = _table(records, "agrees", CONTROLS)
    by_image, _ = _table(records, "right", PER_IMAGE)
    same, _ = _table(records, "agrees", PER_IMAGE)
    parts = [
        (TEXT, [*by_label, *counted]),
        (AGREEMENT, [*by_dense, *agreeing]),
        (PER_IMAGE_TEXT, [*by_image, "By agreement with the dense model:", "", *same]),
    ]
    return [line for text, lines in parts for line in (*text.splitlines()[1:], "", *lines)]


def _table(
    records: dict[str, dict[str, Any]], measure: Measure, names: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The table's lines, and those that count by stage."""
    lines = [
        f"| model | fewer MACs | stage | {' | '.join(f'`{name}`' for name in names)} | seeds |",
        "|---|---|---|" + "---|" * len(names) + "---|",
    ]
    counted: dict[str, list[Against]] = {stage: [] for stage in STAGES}
    for name, record in records.items():
        for budget, stage, cells in _compared(record["rows"], measure, names):
            counted[stage] += cells.values()
            seeds = " or ".join(map(str, sorted({cell.seeds for cell in cells.values()})))
            shown = " | ".join(str(cells.get(control, "-")) for control in names)
            lines.append(f"| {name} | {budget:.0%} | {STAGES[stage]} | {shown} | {seeds} |")
    tally = [_count(stage, found) for stage, found in counted.items() if found]
    return [*lines, ""], [*tally, ""]


def _compared(
    rows: list[dict[str, Any]], measure: Measure, names: Sequence[str]
) -> list[tuple[float, str, dict[str, Against]]]:
    """Per budget and stage, each control that was judged as the default was."""
    found = []
    for order, stage in enumerate(STAGES):
        for budget, by_name in estimators(rows, stage, measure, names):
            default = by_name.pop(DEFAULT)
            gains = {name: differences(seeds, default) for name, seeds in by_name.items()}
            cells = {name: _against(gain) for name, gain in gains.items() if gain}
            if cells:
                found.append((budget, order, stage, cells))
    return [(b, stage, cells) for b, _, stage, cells in sorted(found, key=lambda f: f[:2])]


def _count(stage: str, found: list[Against]) -> str:
    behind = [cell for cell in found if cell.gain < 0]
    ahead = [cell for cell in found if cell.gain > 0]
    return (
        f"- {STAGES[stage]}: {len(found)} compared, {len(behind)} in favour of `{DEFAULT}` "
        f"({sum(cell.told for cell in behind)} by an interval that leaves zero out), "
        f"{len(ahead)} against it ({sum(cell.told for cell in ahead)} so)."
    )


def _against(gains: list[Hits]) -> Against:
    ends = interval(gains)
    return Against(100 * float(np.mean(gains)), 100 * ends.low, 100 * ends.high, len(gains))
