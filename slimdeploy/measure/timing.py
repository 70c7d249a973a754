"""Paired latency: dense and slim side by side in one process, so that drift hits both alike.

A speed-up taken from two separate runs compares two moods of a machine. Here each round calls both
engines once on the same input, and the ratio is formed within the round. The order within a round
is drawn at random for every second round and reversed in the next (ABBA or BAAB), so that neither
engine profits from always coming second. Nothing is dropped as an outlier.

The interval covers the noise between rounds. It does not cover what differs between two loads of
one file (where their memory happens to lie): a model against itself comes out 0 to 2 % from 1.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slimdeploy.engine.protocol import Array, Engine, EngineInfo, TensorInfo
from slimdeploy.errors import InputError
from slimdeploy.measure.host import cpu_name
from slimdeploy.measure.stats import Interval, bootstrap_interval

Progress = Callable[[int, int], None]

Clock = Literal["wall", "cpu"]

_CLOCKS: dict[Clock, tuple[Callable[[], int], str]] = {
    "wall": (
        time.perf_counter_ns,
        "time.perf_counter_ns around infer(), host arrays in and out",
    ),
    "cpu": (
        time.thread_time_ns,
        "time.thread_time_ns around infer(): CPU time of the calling thread alone, which says "
        "nothing of engines with more than one thread",
    ),
}
_ORDER = "each pair in random order, the next pair reversed"
_INTERVAL = "95 %, circular block bootstrap over rounds, blocks of the cube root of their number"


@dataclass(frozen=True)
class TimingProtocol:
    """How the numbers were taken; it travels with them."""

    dense: EngineInfo
    slim: EngineInfo
    cpu: str
    warmup: int
    rounds: int
    min_seconds: float
    seed: int
    clock: str = _CLOCKS["wall"][1]
    images: str = "standard normal noise"
    order: str = _ORDER
    interval: str = _INTERVAL
    outliers_dropped: int = 0
    garbage_collection: str = "off while timing"


@dataclass(frozen=True)
class Latency:
    """One engine's calls at one batch size: milliseconds a call, and images a second."""

    mean_ms: float
    median_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    images_per_second: float


@dataclass(frozen=True)
class LatencyRow:
    """Dense and slim at one batch size.

    Attributes:
        batch_size: images a call.
        rounds: pairs of calls that were timed.
        dense: the dense engine's calls.
        slim: the slim engine's calls.
        speedup: median over the rounds of dense time / slim time.
        speedup_interval: its 95 % interval.
        ratio_of_medians: median dense time / median slim time.
        ratio_of_medians_interval: its 95 % interval.
    """

    batch_size: int
    rounds: int
    dense: Latency
    slim: Latency
    speedup: float
    speedup_interval: Interval
    ratio_of_medians: float
    ratio_of_medians_interval: Interval


@dataclass(frozen=True)
class LatencyComparison:
    """All batch sizes, with the protocol they were measured by."""

    protocol: TimingProtocol
    rows: tuple[LatencyRow, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)


def compare_latency(
    dense: Engine,
    slim: Engine,
    batch_sizes: Sequence[int],
    *,
    rounds: int = 50,
    min_seconds: float = 0.0,
    warmup: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
    images: Array | None = None,
    clock: Clock = "wall",
) -> LatencyComparison:
    """Time both engines on the same random images, at each batch size.

    Args:
        dense: the reference; the ratio is its time over the other's.
        slim: the engine that is to be faster.
        batch_sizes: images a call.
        rounds: pairs of calls at least.
        min_seconds: go on for at least this long at each batch size.
        warmup: untimed pairs first.
        seed: of the input, of the order, and of the intervals.
        progress: called with the pairs done and expected, between rounds, outside the timing.
        images: [n, ...], repeated to fill a batch, in place of noise. Noise may lead to numbers
            too small to be normal, which CPUs multiply slowly.
        clock: "wall", or "cpu" for engines of one thread on a machine that others use too.

    Raises:
        InputError: if the engines take different inputs, or not this batch size.
    """
    _check_request(batch_sizes, rounds, warmup)
    shape = _common_shape(dense, slim)
    for engine in (dense, slim):
        _check_sizes(engine, batch_sizes)
    protocol = TimingProtocol(
        dense.describe(),
        slim.describe(),
        cpu_name(),
        warmup,
        rounds,
        min_seconds,
        seed,
        clock=_CLOCKS[clock][1],
        images="standard normal noise" if images is None else f"{len(images)} images given",
    )
    rows = []
    for i, size in enumerate(batch_sizes):
        done, expected = i * rounds, len(batch_sizes) * rounds
        report = _offset(progress, done, rounds, expected)
        calls = _calls(dense, slim, _input((size, *shape[1:]), seed, images))
        with _no_garbage_collection():
            times = _measure(calls, rounds, min_seconds, warmup, seed, report, _CLOCKS[clock][0])
        rows.append(summarise(size, times, seed))
    return LatencyComparison(protocol, tuple(rows))


def summarise(batch_size: int, times: NDArray[np.float64], seed: int) -> LatencyRow:
    """Medians, percentiles and ratios of [rounds, 2] times in milliseconds: dense, slim."""
    block = math.ceil(len(times) ** (1 / 3))

    def interval(statistic: Callable[[NDArray[Any]], float]) -> Interval:
        return bootstrap_interval(times, statistic, seed=seed, block=block)

    return LatencyRow(
        batch_size=batch_size,
        rounds=len(times),
        dense=_latency(times[:, 0], batch_size),
        slim=_latency(times[:, 1], batch_size),
        speedup=_median_ratio(times),
        speedup_interval=interval(_median_ratio),
        ratio_of_medians=_ratio_of_medians(times),
        ratio_of_medians_interval=interval(_ratio_of_medians),
    )


def _check_sizes(engine: Engine, batch_sizes: Sequence[int]) -> None:
    """Refuse now what would be refused after the other sizes have been timed."""
    fixed = engine.inputs[0].shape[0]
    for size in batch_sizes:
        if fixed and size != fixed:
            raise InputError(
                f"--batch-size {size}: {engine.describe().artifact} takes {fixed} a call; give "
                f"--batch-size {fixed}"
            )


def _median_ratio(times: NDArray[Any]) -> float:
    return float(np.median(times[:, 0] / times[:, 1]))


def _ratio_of_medians(times: NDArray[Any]) -> float:
    dense, slim = np.median(times, axis=0)
    return float(dense / slim)


def _latency(times: NDArray[np.float64], batch_size: int) -> Latency:
    median, p90, p95, p99 = (float(q) for q in np.percentile(times, [50, 90, 95, 99]))
    mean = float(times.mean())
    return Latency(
        mean_ms=mean,
        median_ms=median,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        min_ms=float(times.min()),
        max_ms=float(times.max()),
        images_per_second=batch_size * 1000 / mean,
    )


def _measure(
    calls: tuple[Callable[[], object], Callable[[], object]],
    rounds: int,
    min_seconds: float,
    warmup: int,
    seed: int,
    report: Progress,
    now: Callable[[], int] = time.perf_counter_ns,
) -> NDArray[np.float64]:
    """Milliseconds, [rounds, 2]: column 0 is the dense call, column 1 the slim one."""
    for _ in range(warmup):
        for call in calls:
            call()
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    for first in _order(seed):
        pair = [0.0, 0.0]
        for side in (first, 1 - first):
            before = now()
            calls[side]()
            pair[side] = (now() - before) / 1e6
        times.append((pair[0], pair[1]))
        report(len(times), rounds)
        if len(times) >= rounds and time.perf_counter() - start >= min_seconds:
            break
    return np.array(times)


def _order(seed: int) -> Iterator[int]:
    """Which side comes first, round by round: a random one, then the other."""
    generator = np.random.default_rng(seed)
    while True:
        first = int(generator.integers(2))
        yield first
        yield 1 - first


def _input(shape: tuple[int, ...], seed: int, images: Array | None) -> Array:
    """What both engines are fed: noise, or the images given, over and over.

    Raises:
        InputError: if these are none, or of another size, or the noise is beyond the memory.
    """
    if images is None:
        return _noise(shape, seed)
    if not len(images) or images.shape[1:] != shape[1:]:
        raise InputError(
            f"images of {list(images.shape)} cannot be timed: needs [n, {list(shape[1:])}]"
        )
    return np.ascontiguousarray(images[np.arange(shape[0]) % len(images)])


def _noise(shape: tuple[int, ...], seed: int) -> Array:
    try:
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    except (MemoryError, OverflowError, ValueError) as error:
        size = 4 * math.prod(shape) / 1e9
        raise InputError(
            f"--batch-size {shape[0]}: its images alone take {size:.3g} GB, more than this machine "
            "gives; ask for fewer"
        ) from error


def _calls(
    dense: Engine, slim: Engine, images: Array
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Both engines' calls on the same array, or on its cast to what each takes."""
    dense_images = images.astype(dense.inputs[0].dtype, copy=False)
    slim_images = images.astype(slim.inputs[0].dtype, copy=False)
    return (lambda: dense.infer(dense_images)), (lambda: slim.infer(slim_images))


def _check_request(batch_sizes: Sequence[int], rounds: int, warmup: int) -> None:
    if not batch_sizes or min(batch_sizes) < 1:
        raise InputError(f"batch sizes {list(batch_sizes)}: give one or more, each at least 1")
    if rounds < 2 or warmup < 0:
        raise InputError(
            f"{rounds} rounds after {warmup} warm-up pairs: ask for 2 rounds or more, warm-up >= 0"
        )


def _common_shape(dense: Engine, slim: Engine) -> tuple[int, ...]:
    """The input's shape without the batch, which must be fixed and alike for both."""
    shapes = [_single_input(engine).shape[1:] for engine in (dense, slim)]
    if shapes[0] != shapes[1] or None in shapes[0]:
        names = [engine.describe().artifact for engine in (dense, slim)]
        raise InputError(
            f"{names[0]} takes images of {list(shapes[0])} and {names[1]} of {list(shapes[1])}: "
            "both must take the same fixed size, and have the same --input-layout"
        )
    return (0, *(dim for dim in shapes[0] if dim is not None))


def _single_input(engine: Engine) -> TensorInfo:
    if len(engine.inputs) != 1:
        name = engine.describe().artifact
        raise InputError(f"{name}: has {len(engine.inputs)} inputs; only one, images, can be timed")
    return engine.inputs[0]


def _offset(progress: Progress | None, done: int, rounds: int, expected: int) -> Progress:
    """Progress within one batch size as progress over all; extra rounds do not overshoot."""

    def report(now: int, _: int) -> None:
        if progress is not None:
            progress(done + min(now, rounds), expected)

    return report


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
