"""The front of a sweep as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slimdeploy.measure.accuracy import Accuracy
from slimdeploy.measure.sweep import SweepGroup, pareto


def front_table(
    groups: Sequence[SweepGroup],
    dense: Accuracy,
    dense_macs: int,
    protocol: dict[str, Any] | None,
    remarks: Sequence[str] = (),
) -> RenderableType:
    """A row for each impact and budget, cheapest last; a star marks the front over MACs.

    Args:
        groups: the seeds of one impact and budget together.
        dense: the dense model's accuracy.
        dense_macs: its MACs for one image.
        protocol: how latency was measured; None if it was not.
        remarks: lines below the table.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for head in (
        "",
        "impact",
        "saved",
        "top-1",
        "difference (95 %)",
        "ECE",
        "batch",
        "speed-up (95 %)",
    ):
        left, name = head in ("", "impact"), head == "impact"
        # Where there is no room only a name may go on in the next line: numbers stay whole.
        table.add_column(
            head, justify="left" if left else "right", no_wrap=not name, overflow="fold"
        )
    table.add_row("", "dense", "", f"{dense.top1:.2%}", "", f"{_error(dense):.1%}", "", "")
    best = pareto([g.macs for g in groups], [g.top1 for g in groups])
    rows = sorted(zip(groups, best, strict=True), key=lambda row: (-row[0].macs, -row[0].top1))
    for group, is_best in rows:
        table.add_row("*" if is_best else "", *_cells(group))
    seeds = len(groups[0].points)
    of_seeds = f"mean of {seeds} seeds; " * (seeds > 1)
    lines = [
        f"{dense.n} test images, dense {dense_macs / 1e9:.3f} GMAC; {of_seeds}*: nothing as cheap "
        "is better; difference in points, paired by image; ECE: expected calibration error, bins "
        "of equal mass",
        *([_timing(protocol)] if protocol else []),
        *remarks,
    ]
    return Group(table, Text("\n".join(lines), style="dim"))


def _cells(group: SweepGroup) -> tuple[str, ...]:
    low, high = 100 * group.interval.low, 100 * group.interval.high
    points = group.points
    error = fmean(p.calibration_errors["equal-mass"].value for p in points)
    speeds = (
        f"{s.value:.2f}x ({s.interval.low:.2f} to {s.interval.high:.2f})" for s in group.speeds
    )
    return (
        group.impact,
        f"{fmean(point.mac_reduction for point in points):.1%}",
        f"[bold]{group.top1:.2%}[/]",
        f"{100 * group.difference:+.1f} ({low:+.1f} to {high:+.1f})",
        f"{error:.1%}",
        "\n".join(str(speed.batch_size) for speed in group.speeds),
        "\n".join(speeds),
    )


def _error(accuracy: Accuracy) -> float:
    return accuracy.calibration_errors[1].value


def _timing(protocol: dict[str, Any]) -> str:
    dense = protocol["dense"]
    return (
        f"speed-up: median over {protocol['rounds']} interleaved pairs, {dense['runtime']} "
        f"{dense['version']}, {dense['provider']}, threads: {dense['threads']}, {protocol['cpu']}"
    )
