"""What each estimator costs by budget, as a picture: docs/bench/accuracy.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from slimdeploy.files import atomic_path
from slimdeploy.measure.stats import mean_interval
from tools.accuracy_rows import CONTROLS, DEFAULT, Hits, estimators, hits

STAGES = {"dense_weights": "the dense model's weights", "refit": "after the closed-form refit"}
_INK, _QUIET = "#1a1a1a", "#6b6b6b"
# Told apart by their shape as well: for eyes that do not see colours, and for printers.
_STYLES = {
    DEFAULT: ("#1f6f8b", "o"), "joint": ("#4d9078", "h"), "path": ("#c8553d", "s"),
    "attention": ("#7b4b94", "D"), "class-attention": ("#b8860b", "v"), "grid": ("#6a8532", "^"),
    "centre": ("#3b3b3b", "P"), "random": ("#c2185b", "X"),
}  # fmt: skip
_DODGE = 0.22  # points of MACs between marks that would hide each other


def draw(records: dict[str, dict[str, Any]], path: Path) -> None:
    """A row of panels a stage, a panel a study; points lost against MACs saved.

    Of each budget the seeds that all its estimators have. The bar is the default's 95 % interval
    over test images; the others' are in the tables.
    """
    figure = Figure(figsize=(4 * len(records), 6.6), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(STAGES), len(records), squeeze=False, sharex=True)
    for column, record in enumerate(records.values()):
        for panel, (stage, words) in zip(grid[:, column], STAGES.items(), strict=True):
            _panel(panel, record, stage)
            title = record["study"].split(" at ")[0].split(" of ")[0]
            panel.set_title(f"{title}\n{words}", fontsize=9, color=_INK)
    for panel in grid[-1]:
        panel.set_xlabel("fewer MACs (%)", fontsize=9, color=_QUIET)
    for panel in grid[:, 0]:
        panel.set_ylabel("top-1 to the dense model (points)", fontsize=9, color=_QUIET)
    shown = [
        grid[0, 0].plot([], [], marker=m, color=c, label=n)[0] for n, (c, m) in _STYLES.items()
    ]
    figure.legend(handles=shown, loc="outside lower center", ncols=8, frameon=False, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _panel(panel: Any, record: dict[str, Any], stage: str) -> None:
    lines = _lines(record, stage)
    for place, name in enumerate((DEFAULT, *CONTROLS)):
        dodge = _DODGE * (place - len(CONTROLS) / 2)
        budgets = sorted(budget for one, budget in lines if one == name)
        if not budgets:
            continue
        colour, mark = _STYLES[name]
        at = [100 * budget + dodge for budget in budgets]
        means = [100 * float(lines[name, budget].mean()) for budget in budgets]
        first = name == DEFAULT
        panel.plot(
            at, means, marker=mark, color=colour, ms=6 if first else 5, lw=2 if first else 0.9,
            zorder=3 if first else 2,
        )  # fmt: skip
        if first:
            ends = [mean_interval(lines[name, budget], seed=0) for budget in budgets]
            panel.vlines(at, [100 * e.low for e in ends], [100 * e.high for e in ends], colour)
    panel.axhline(0, color=_QUIET, lw=0.8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8, colors=_QUIET)


def _lines(record: dict[str, Any], stage: str) -> dict[tuple[str, float], Hits]:
    """Per estimator and budget the difference to dense image by image, [n].

    The mean over the seeds that all estimators of that budget have.
    """
    found = {}
    for budget, by_name in estimators(record["rows"], stage):
        seeds = set.intersection(*({*of} for of in by_name.values()))
        for name, right in by_name.items():
            if seeds:
                mean = np.mean([right[seed] for seed in sorted(seeds)], axis=0)
                found[name, budget] = mean - hits(record["dense"][str(len(mean))], len(mean))
    return found
