"""`slimdeploy profile`: paired latency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy.cli.common import show
from slimdeploy.cli.numbers import Count, Limit, Natural, Seconds, Seed
from slimdeploy.console import note, progress_bar
from slimdeploy.engine.sessions import Provider
from slimdeploy.errors import GateError, InputError
from slimdeploy.report.tables import latency_table

if TYPE_CHECKING:
    from slimdeploy.measure.timing import LatencyComparison


def profile(
    *,
    dense: Path,
    slim: Path,
    batch_size: str = "1,8",
    threads: Count = 1,
    rounds: Count = 50,
    min_seconds: Seconds = 0.0,
    warmup: Natural = 5,
    seed: Seed = 0,
    min_speedup: Limit = None,
    provider: Provider = "cpu",
    json: bool = False,
) -> None:
    """Latency of dense and slim, interleaved in one process; the protocol beside the numbers.

    Args:
        dense: the dense model's file.
        slim: the slim model's file.
        batch_size: images a call; several with commas, as 1,8.
        threads: of the runtime.
        rounds: timed pairs at each batch size, at least.
        min_seconds: go on for at least this long at each batch size.
        warmup: untimed pairs first.
        seed: of the input, the order of each pair and the intervals.
        min_speedup: fail (exit 1) if any batch size's speed-up is below this.
        provider: what ONNX Runtime runs .onnx files on, with no fallback to another.
        json: print the result as JSON.
    """
    try:
        sizes = [int(size) for size in batch_size.split(",")]
    except ValueError:
        raise InputError(f"--batch-size {batch_size}: whole numbers with commas, as 1,8") from None
    comparison = compare(
        dense,
        slim,
        sizes,
        threads,
        rounds,
        min_seconds,
        warmup,
        seed,
        provider,
        gated=min_speedup is not None,
    )
    show(comparison.to_json(), latency_table(comparison), json)
    for row in comparison.rows:
        if min_speedup is not None and row.speedup < min_speedup:
            raise GateError(
                f"{slim}: {row.speedup:.2f} times as fast as {dense} at batch size "
                f"{row.batch_size}, wanted {min_speedup}"
            )


def compare(
    dense: Path,
    slim: Path,
    sizes: list[int],
    threads: int = 1,
    rounds: int = 50,
    min_seconds: float = 0.0,
    warmup: int = 5,
    seed: int = 0,
    provider: Provider = "cpu",
    *,
    gated: bool = False,
) -> LatencyComparison:
    """Paired latency of two files, with a progress bar.

    Raises:
        InputError: if a gate is to judge the speed of a number type that is emulated here.
    """
    from slimdeploy.engine import open_engine
    from slimdeploy.measure.timing import compare_latency

    with (
        open_engine(dense, provider, threads) as first,
        open_engine(slim, provider, threads) as second,
        progress_bar() as progress,
    ):
        for path, engine in ((dense, first), (slim, second)):
            _check_real(path, engine.describe().provider, gated)
        bar = progress.add_task("timing pairs", total=rounds * len(sizes))
        return compare_latency(
            first,
            second,
            sizes,
            rounds=rounds,
            min_seconds=min_seconds,
            warmup=warmup,
            seed=seed,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )


def _check_real(path: Path, provider: str, gated: bool) -> None:
    """Refuse a gate on, or remark, a speed that is not that of the file's number type."""
    if "emulated" not in provider:
        return
    remark = f"{path}: runs as {provider}: its speed here says nothing"
    if gated:
        raise InputError(f"--min-speedup: {remark}; judge it on what it is for")
    note(remark)
