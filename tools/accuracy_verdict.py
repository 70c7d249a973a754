"""The default estimator against all others: the first table of the page of accuracy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from slimdeploy.measure.stats import mean_interval
from tools.hits import unpacked

DEFAULT = "cover"
CONTROLS = ("path", "attention", "class-attention", "grid", "centre", "random")
STAGES = {"dense_weights": "dense weights", "refit": "refit", "finetuned": "fine-tuned"}

TEXT = f"""
## `{DEFAULT}` against the others

How many points of top-1 each loses to `{DEFAULT}` (+: gains) at the same counts, images and seeds;
bold where the 95 % interval of the paired difference leaves zero out. `path` is the paper's score.

![Points of top-1 lost against MACs saved, an estimator a line, for each model](accuracy.png)
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
    """The lines of the table, and a count of who is ahead."""
    lines = [
        *TEXT.splitlines()[1:],
        "",
        f"| model | fewer MACs | stage | {' | '.join(f'`{name}`' for name in CONTROLS)} | seeds |",
        "|---|---|---|" + "---|" * len(CONTROLS) + "---|",
    ]
    found: list[Against] = []
    for name, record in records.items():
        for (budget, stage), cells in _compared(record["rows"]):
            found += cells.values()
            seeds = " or ".join(map(str, sorted({cell.seeds for cell in cells.values()})))
            shown = " | ".join(str(cells.get(control, "-")) for control in CONTROLS)
            lines.append(f"| {name} | {budget:.0%} | {STAGES[stage]} | {shown} | {seeds} |")
    behind = [cell for cell in found if cell.gain < 0]
    ahead = [cell for cell in found if cell.gain > 0]
    lines += [
        "",
        f"Of {len(found)} differences, {len(behind)} are in favour of `{DEFAULT}` "
        f"({sum(cell.told for cell in behind)} by an interval that leaves zero out) and "
        f"{len(ahead)} against it ({sum(cell.told for cell in ahead)} so).",
        "",
    ]
    return lines


def _compared(
    rows: list[dict[str, Any]],
) -> Iterator[tuple[tuple[float, str], dict[str, Against]]]:
    """Per budget and stage, each control that was judged as the default was."""
    by_key = {_key(row): row for row in rows}
    for budget in sorted({row["mac_reduction"] for row in rows}):
        for stage in STAGES:
            gains = defaultdict(list)
            for row in rows:
                other = by_key.get(_key(row, DEFAULT))
                if row["mac_reduction"] != budget or row["impact"] not in CONTROLS or not other:
                    continue
                one, two = row.get(stage), other.get(stage)
                if one and two and one["n"] == two["n"]:
                    pair = (unpacked(x["right"], x["n"]).astype(float) for x in (one, two))
                    gains[row["impact"]].append(np.subtract(*pair))
            if gains:
                yield (budget, stage), {name: _against(found) for name, found in gains.items()}


def _key(row: dict[str, Any], impact: str | None = None) -> tuple[Any, ...]:
    return impact or row["impact"], *(row[k] for k in ("mac_reduction", "shape", "images", "seed"))


def _against(gains: list[Any]) -> Against:
    interval = mean_interval(np.mean(gains, axis=0), seed=0)
    ends = (100 * interval.low, 100 * interval.high)
    return Against(100 * float(np.mean(gains)), *ends, len(gains))
