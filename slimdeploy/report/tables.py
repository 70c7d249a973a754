"""Results as tables for a terminal. Each function returns what `console.print` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from slimdeploy.engine.protocol import EngineInfo
    from slimdeploy.measure.accuracy import Accuracy, AccuracyComparison
    from slimdeploy.measure.stats import Interval
    from slimdeploy.measure.timing import Latency, LatencyComparison, TimingProtocol


def latency_table(comparison: LatencyComparison) -> RenderableType:
    """Dense and slim side by side at each batch size, and below it how that was measured."""
    table = _table("batch", "", "median ms", "p90", "p99", "images/s", "speed-up (95 %)")
    for row in comparison.rows:
        table.add_row(str(row.batch_size), "dense", *_latency_cells(row.dense), "")
        speedup = f"[bold]{row.speedup:.2f}x[/] {_interval(row.speedup_interval, '.2f')}"
        table.add_row("", "slim", *_latency_cells(row.slim), speedup, end_section=True)
    return Group(table, Text(_protocol(comparison.protocol), style="dim"))


def accuracy_table(
    dense: Accuracy, slim: Accuracy | None = None, comparison: AccuracyComparison | None = None
) -> RenderableType:
    """One engine's accuracy, or two side by side and what lies between them."""
    table = _table("", "top-1 (95 %)", "top-5", "cross-entropy", "images", folded=0)
    for accuracy in (dense, slim):
        if accuracy is not None:
            table.add_row(
                escape(accuracy.engine.artifact),
                f"[bold]{accuracy.top1:.2%}[/] {_interval(accuracy.top1_interval, '.2%')}",
                "-" if accuracy.top5 is None else f"{accuracy.top5:.2%}",
                f"{accuracy.cross_entropy:.4f}",
                str(accuracy.n),
            )
    lines = [_calibration(x) for x in (dense, slim) if x is not None]
    if comparison is not None:
        lines.append(_difference(comparison))
    return Group(table, Text("\n".join(lines), style="dim"))


def recall_table(accuracies: Sequence[Accuracy]) -> Table:
    """The share of each class's images that each engine finds; engines side by side."""
    table = _table("class", *(escape(a.engine.artifact) for a in accuracies), "images", folded=0)
    for i, name in enumerate(accuracies[0].classes):
        cells = (a.recall[i] for a in accuracies)
        shares = ("-" if share is None else f"{share:.2%}" for share in cells)
        table.add_row(escape(name), *shares, str(int(accuracies[0].confusion[i].sum())))
    return table


def schedule_table(
    tokens: Sequence[int],
    macs: Sequence[int],
    dense_tokens: int,
    dense_macs: Sequence[int],
    whole: tuple[int, int] | None = None,
) -> RenderableType:
    """Per layer how many tokens are computed and at what cost.

    Args:
        tokens: how many each layer keeps, prefix tokens included.
        macs: each layer's multiply-accumulates, for one image.
        dense_tokens: how many the dense model has.
        dense_macs: the dense model's, layer by layer.
        whole: MACs of the slim and the dense model with all that is not in a layer: the share of
            these that is saved is what a budget asks for.
    """
    table = _table("layer", "tokens", "kept", "", "MACs (M)", "of dense")
    table.columns[3].justify = "left"
    for layer, (kept, cost, dense) in enumerate(zip(tokens, macs, dense_macs, strict=True), 1):
        share = kept / dense_tokens
        bar = Text("█" * max(1, round(20 * share)), style="cyan")
        table.add_row(
            str(layer), str(kept), f"{share:.1%}", bar, f"{cost / 1e6:.1f}", f"{cost / dense:.1%}"
        )
    summary = [_fewer("blocks", sum(macs), sum(dense_macs))]
    if whole is not None:
        summary.append(_fewer("model", *whole))
    return Group(table, Text("\n".join(summary), style="dim"))


def _fewer(what: str, macs: int, dense_macs: int) -> str:
    share = 1 - macs / dense_macs
    return f"{what}: {macs / 1e9:.3f} of {dense_macs / 1e9:.3f} GMAC, {share:.1%} fewer"


def _table(*columns: str, folded: int | None = None) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        # Where there is no room only a name may go on in the next line: numbers stay whole.
        table.add_column(
            column, justify="left" if i == 0 else "right", no_wrap=i != folded, overflow="fold"
        )
    return table


def _latency_cells(latency: Latency) -> tuple[str, ...]:
    times = (latency.median_ms, latency.p90_ms, latency.p99_ms)
    return (*(f"{time:.2f}" for time in times), f"{latency.images_per_second:.1f}")


def _interval(interval: Interval, form: str) -> str:
    return f"{interval.low:{form}} to {interval.high:{form}}"


def _protocol(protocol: TimingProtocol) -> str:
    return "\n".join(
        (
            _engines(protocol.dense, protocol.slim),
            f"{protocol.cpu}; {protocol.rounds} rounds or more after {protocol.warmup} warm-up",
            f"paired: {protocol.order}; no outlier dropped; interval: {protocol.interval}",
        )
    )


def _engines(dense: EngineInfo, slim: EngineInfo) -> str:
    first, second = _setting(dense), _setting(slim)
    setting = first if first == second else f"{first} against {second}"
    return f"dense {dense.artifact}, slim {slim.artifact}: {setting}"


def _setting(info: EngineInfo) -> str:
    threads = "1 thread" if info.threads == 1 else f"{info.threads} threads"
    return f"{info.runtime} {info.version}, {info.provider}, {threads}"


def _calibration(accuracy: Accuracy) -> str:
    found = "; ".join(
        f"{x.binning} {x.value:.2%} (95 % {_interval(x.interval, '.2%')}; by chance {x.chance:.2%})"
        for x in accuracy.calibration_errors
    )
    bins = accuracy.calibration_errors[0].bins
    return f"{accuracy.engine.artifact}: expected calibration error, {bins} bins: {found}"


def _difference(comparison: AccuracyComparison) -> str:
    low, high = comparison.difference_interval.low, comparison.difference_interval.high
    return (
        f"slim - dense: {100 * comparison.difference:+.2f} points "
        f"(95 % {100 * low:+.2f} to {100 * high:+.2f}), "
        f"agreement {comparison.agreement:.2%}; right only dense {comparison.only_dense_right}, "
        f"only slim {comparison.only_slim_right}, McNemar p = {comparison.mcnemar_p:.3f}; "
        f"KL(dense || slim) {comparison.kl_divergence:.4f} nats "
        f"({_interval(comparison.kl_interval, '.4f')}), "
        f"cosine of logits {comparison.logit_cosine:.4f}; calibration error, equal-mass, "
        f"{100 * comparison.calibration_difference:+.2f} points "
        f"({100 * comparison.calibration_interval.low:+.2f} to "
        f"{100 * comparison.calibration_interval.high:+.2f})"
    )
