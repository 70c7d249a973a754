"""The front of a sweep as a picture: accuracy against MACs, and against the speed-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.errors import requires
from slimdeploy.files import atomic_path
from slimdeploy.measure.stats import Interval
from slimdeploy.measure.sweep import SweepGroup, pareto

_INK, _QUIET, _PALE = "#1a1a1a", "#6b6b6b", "#dfe3e8"
# Told apart by their shape as well: for eyes that do not see colours, and for printers.
_STYLES = (
    ("#1f6f8b", "o"), ("#c8553d", "s"), ("#6a8532", "^"), ("#7b4b94", "D"),
    ("#b8860b", "v"), ("#3b3b3b", "P"), ("#c2185b", "X"), ("#00897b", "*"),
)  # fmt: skip
_DODGE = 0.016  # of the panel's width, between markers that would hide each other


@dataclass(frozen=True)
class DenseReference:
    """The dense model: top-1 (a share), MACs for one image, its name."""

    top1: float
    macs: float
    name: str


@dataclass(frozen=True)
class _Dot:
    """A group in one panel."""

    group: SweepGroup
    x: float
    x_interval: Interval | None
    best: bool


def draw_front(
    groups: Sequence[SweepGroup], dense: DenseReference, images: int, paths: Sequence[Path]
) -> None:
    """Write the picture to each of `paths`, in the format that its suffix says.

    The left panel has accuracy against GMAC; a further one for each batch size that was timed has
    it against the speed-up. Filled marks are on the Pareto front of the panel, the dense model
    taking part; bars are 95 % intervals: up and down of the paired difference to dense, sideways of
    the speed-up.

    Args:
        images: how many the accuracy rests on, for the caption.

    Raises:
        MissingError: if matplotlib is not installed.
    """
    figure = front_figure(groups, dense, images)
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for path in paths:
        canvas = FigureCanvasSVG(figure) if path.suffix == ".svg" else figure.canvas
        with atomic_path(path) as temporary:
            canvas.print_figure(temporary, dpi=160, format=path.suffix[1:])


def front_figure(groups: Sequence[SweepGroup], dense: DenseReference, images: int) -> Any:
    """The matplotlib figure of `draw_front`."""
    with requires("report"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    batches = [speed.batch_size for speed in groups[0].speeds]
    count = 1 + len(batches)
    figure = Figure(figsize=(0.8 + 4.6 * count, 4.4), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    styles = _styles(groups)
    _draw_panel(axes[0], _by_macs(groups, dense), (dense.macs, dense.top1), styles)
    _label_macs(axes[0], groups, dense)
    for panel, (index, batch) in zip(axes[1:], enumerate(batches), strict=True):
        _draw_panel(panel, _by_speed(groups, dense, index), (1.0, dense.top1), styles)
        panel.set_xlabel(f"times as fast as dense, batch size {batch}", fontsize=9, color=_QUIET)
    axes[0].set_ylabel("top-1 (%)", fontsize=9, color=_QUIET)
    _explain(figure, styles, dense, images, len(groups[0].points))
    return figure


def _styles(groups: Sequence[SweepGroup]) -> dict[str, tuple[str, str]]:
    impacts = list(dict.fromkeys(group.impact for group in groups))
    return {impact: _STYLES[i % len(_STYLES)] for i, impact in enumerate(impacts)}


def _by_macs(groups: Sequence[SweepGroup], dense: DenseReference) -> list[_Dot]:
    """Impacts side by side: at one budget they have the same MACs."""
    best = pareto([dense.macs, *(g.macs for g in groups)], [dense.top1, *(g.top1 for g in groups)])
    impacts = list(_styles(groups))
    step = _DODGE * (dense.macs - min(group.macs for group in groups))
    return [
        _Dot(
            group,
            group.macs + step * (impacts.index(group.impact) - (len(impacts) - 1) / 2),
            None,
            is_best,
        )
        for group, is_best in zip(groups, best[1:], strict=True)
    ]


def _by_speed(groups: Sequence[SweepGroup], dense: DenseReference, index: int) -> list[_Dot]:
    speeds = [group.speeds[index] for group in groups]
    best = pareto([-1.0, *(-s.value for s in speeds)], [dense.top1, *(g.top1 for g in groups)])
    return [
        _Dot(group, speed.value, speed.interval, is_best)
        for group, speed, is_best in zip(groups, speeds, best[1:], strict=True)
    ]


def _draw_panel(
    axes: Any,
    dots: Sequence[_Dot],
    dense: tuple[float, float],
    styles: dict[str, tuple[str, str]],
) -> None:
    """Marks with their bars; the front is dotted, the dense model's top-1 a dashed line."""
    axes.axhline(100 * dense[1], color=_INK, lw=1, ls="--", zorder=1)
    front = sorted([dense, *((dot.x, dot.group.top1) for dot in dots if dot.best)])
    axes.plot([x for x, _ in front], [100 * y for _, y in front], color=_QUIET, lw=1, ls=":")
    axes.plot(dense[0], 100 * dense[1], "o", color=_INK, ms=7)
    for dot in dots:
        colour, mark = styles[dot.group.impact]
        drop, low, high = dot.group.difference, dot.group.interval.low, dot.group.interval.high
        axes.errorbar(
            dot.x,
            100 * dot.group.top1,
            yerr=[[100 * (drop - low)], [100 * (high - drop)]],
            xerr=_sides(dot),
            fmt=mark,
            color=colour,
            mfc=colour if dot.best else "white",
            ms=6,
            lw=1,
        )
    axes.tick_params(labelsize=8, colors=_QUIET, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_PALE, lw=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.08)


def _sides(dot: _Dot) -> list[list[float]] | None:
    if dot.x_interval is None:
        return None
    # The median over seeds lies within the seeds' intervals, but for rounding.
    return [[max(dot.x - dot.x_interval.low, 0.0)], [max(dot.x_interval.high - dot.x, 0.0)]]


def _label_macs(axes: Any, groups: Sequence[SweepGroup], dense: DenseReference) -> None:
    """Ticks at the budgets, with what each saves, as far as there is room."""
    places = sorted({group.macs for group in groups} | {dense.macs})
    apart, shown = (places[-1] - places[0]) / 11.5, list[float]()
    for place in reversed(places):
        if not shown or shown[-1] - place >= apart:
            shown.append(place)
    unit, name = (1e9, "GMAC") if dense.macs >= 1e8 else (1e6, "MMAC")
    axes.set_xticks(shown, [f"{x / unit:.3g}\n{_saved(x, dense)}" for x in shown])
    axes.set_xlabel(f"{name} an image", fontsize=9, color=_QUIET)


def _saved(macs: float, dense: DenseReference) -> str:
    return "dense" if macs == dense.macs else f"-{1 - macs / dense.macs:.0%}"


def _explain(
    figure: Any,
    styles: dict[str, tuple[str, str]],
    dense: DenseReference,
    images: int,
    seeds: int,
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=mark, ls="", label=impact)
        for impact, (colour, mark) in styles.items()
    ]
    handles.append(Line2D([], [], color=_QUIET, ls=":", marker="o", label="Pareto front (filled)"))
    handles.append(
        Line2D([], [], color=_INK, ls="--", marker="o", label=f"dense: {dense.top1:.2%}")
    )
    columns = min(len(handles), 4 * len(figure.axes))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
    of_seeds = f", mean of {seeds} seeds" if seeds > 1 else ""
    name = dense.name.replace("$", r"\$")  # two of them would begin and end a formula
    figure.suptitle(
        f"{name}: {images} test images{of_seeds}\n"
        "bars: 95 %, up and down of the paired difference to dense",
        x=0.008,
        ha="left",
        fontsize=10,
        color=_INK,
    )
