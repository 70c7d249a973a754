"""The default estimator against all others: the first tables of the page of accuracy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tools.accuracy_rows import CONTROLS, DEFAULT, Hits, Measure, differences, estimators, interval

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
    """The lines of both tables, each with a count by stage of who is ahead."""
    by_label, by_dense = _table(records, "right"), _table(records, "agrees")
    return [*TEXT.splitlines()[1:], "", *by_label, *AGREEMENT.splitlines()[1:], "", *by_dense]


def _table(records: dict[str, dict[str, Any]], measure: Measure) -> list[str]:
    lines = [
        f"| model | fewer MACs | stage | {' | '.join(f'`{name}`' for name in CONTROLS)} | seeds |",
        "|---|---|---|" + "---|" * len(CONTROLS) + "---|",
    ]
    counted: dict[str, list[Against]] = {stage: [] for stage in STAGES}
    for name, record in records.items():
        for budget, stage, cells in _compared(record["rows"], measure):
            counted[stage] += cells.values()
            seeds = " or ".join(map(str, sorted({cell.seeds for cell in cells.values()})))
            shown = " | ".join(str(cells.get(control, "-")) for control in CONTROLS)
            lines.append(f"| {name} | {budget:.0%} | {STAGES[stage]} | {shown} | {seeds} |")
    return [*lines, "", *(_count(stage, found) for stage, found in counted.items() if found), ""]


def _compared(
    rows: list[dict[str, Any]], measure: Measure
) -> list[tuple[float, str, dict[str, Against]]]:
    """Per budget and stage, each control that was judged as the default was."""
    found = []
    for order, stage in enumerate(STAGES):
        for budget, by_name in estimators(rows, stage, measure):
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
