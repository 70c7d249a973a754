"""A schedule as one picture: how long each patch lives, and what each layer costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import requires
from slimdeploy.files import atomic_path
from slimdeploy.macs import ModelMacs
from slimdeploy.report.kept_patches import kept_mask

_INK, _QUIET, _PALE, _FULL = "#1a1a1a", "#6b6b6b", "#dfe3e8", "#1f6f8b"


def lifetimes(
    keep: Sequence[Sequence[int]], grid: tuple[int, int], prefix: int
) -> NDArray[np.int64]:
    """The number of layers that compute each patch, [rows, columns]."""
    counts: NDArray[np.int64] = sum(
        (kept_mask(ids, grid, prefix).astype(np.int64) for ids in keep),
        start=np.zeros(grid, np.int64),
    )
    return counts


def draw_lifetimes(
    keep: Sequence[Sequence[int]],
    grid: tuple[int, int],
    prefix: int,
    slim: ModelMacs,
    dense: ModelMacs,
    path: Path,
) -> None:
    """Write a PNG: left the patch grid, coloured by lifetime; right each layer's MACs.

    Args:
        keep: per layer the ids of the kept tokens, of which 0 ... prefix - 1 are not patches.
        grid: rows and columns of patches.
        prefix: class, distillation and register tokens before the patches.
        slim: the schedule's cost.
        dense: the cost with nothing dropped.
        path: the PNG to write.

    Raises:
        MissingError: if matplotlib is not installed.
    """
    with requires("report"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.9), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _draw_grid(figure, left, lifetimes(keep, grid, prefix), len(keep))
    _draw_costs(right, slim, dense)
    saved = 1 - slim.total / dense.total
    figure.suptitle(
        f"{slim.total / 1e9:.2f} of {dense.total / 1e9:.2f} GMAC an image: {saved:.0%} fewer",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
        color=_INK,
    )
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary, dpi=160, format="png")


def _draw_grid(figure: Any, axes: Any, lives: NDArray[np.int64], depth: int) -> None:
    shown = axes.imshow(lives, cmap="YlGnBu", vmin=0, vmax=depth)
    axes.set_title("layers that compute each patch", fontsize=10, color=_INK, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    for (row, column), count in np.ndenumerate(lives):
        colour = "white" if count > 0.55 * depth else _INK
        axes.text(column, row, str(count), ha="center", va="center", fontsize=6.5, color=colour)
    bar = figure.colorbar(shown, ax=axes, shrink=0.9, pad=0.02, ticks=range(0, depth + 1, 3))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=_QUIET, length=0)


def _draw_costs(axes: Any, slim: ModelMacs, dense: ModelMacs) -> None:
    layers = np.arange(1, len(slim.layers) + 1)
    full = [layer.total / 1e6 for layer in dense.layers]
    cost = [layer.total / 1e6 for layer in slim.layers]
    axes.bar(layers, full, color=_PALE, width=0.82, label="dense")
    axes.bar(layers, cost, color=_FULL, width=0.82, label="slim")
    for index, layer in enumerate(slim.layers):
        axes.annotate(
            str(layer.queries),
            (index + 1, cost[index]),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=_INK,
        )
    axes.set_title(
        "MACs of each layer (M); above the bars, its tokens", fontsize=10, color=_INK, loc="left"
    )
    axes.set_xticks(layers)
    axes.set_xlabel("layer", fontsize=9, color=_QUIET)
    axes.tick_params(labelsize=8, colors=_QUIET, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    axes.set_ylim(0, max(full) * 1.18)
