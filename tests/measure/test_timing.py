"""Paired latency with real engines; the arithmetic on times made up."""

from __future__ import annotations

import gc
import itertools
import json

import numpy as np
import onnx.parser
import pytest

from slimdeploy.engine import OnnxRuntimeEngine
from slimdeploy.errors import InputError
from slimdeploy.measure.timing import compare_latency, summarise


def products(count: int, *, size: int = 64, batch: str = "B") -> OnnxRuntimeEngine:
    """A chain of `count` matrix products: its work is in proportion to `count`."""
    names = ["images", *(f"y{i}" for i in range(count))]
    steps = "\n".join(f"{b} = MatMul ({a}, images)" for a, b in itertools.pairwise(names))
    shape = f"float[{batch}, {size}, {size}]"
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g ({shape} images) => ({shape} {names[-1]}) {{ {steps} }}"""
    return OnnxRuntimeEngine(onnx.parser.parse_model(text).SerializeToString(), threads=1)


def test_less_work_is_faster() -> None:
    with products(80) as dense, products(10) as slim:
        found = compare_latency(dense, slim, [1, 4], rounds=12, warmup=2)
    assert [row.batch_size for row in found.rows] == [1, 4]
    for row in found.rows:
        assert row.speedup > 2, "an eighth of the work"
        assert row.speedup in row.speedup_interval
        assert row.ratio_of_medians in row.ratio_of_medians_interval
        assert row.dense.min_ms <= row.dense.median_ms <= row.dense.p99_ms <= row.dense.max_ms
    assert found.protocol.dense.provider == "CPUExecutionProvider"
    assert found.protocol.outliers_dropped == 0
    assert found.protocol.cpu
    json.dumps(found.to_json(), allow_nan=False)


def test_an_engine_against_itself_is_no_faster() -> None:
    with products(20) as dense, products(20) as slim:
        found = compare_latency(dense, slim, [2], rounds=30)
    assert 0.5 < found.rows[0].speedup < 2


def test_calls_alternate_and_collection_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    with products(1) as dense, products(1) as slim:
        for name, engine in (("d", dense), ("s", slim)):
            run = engine.infer

            def infer(images: np.ndarray, name: str = name, run=run) -> dict[str, np.ndarray]:
                assert not gc.isenabled()
                calls.append(name)
                return run(images)

            monkeypatch.setattr(engine, "infer", infer)
        steps: list[tuple[int, int]] = []
        compare_latency(
            dense, slim, [1, 2], rounds=20, warmup=1, progress=lambda *step: steps.append(step)
        )
    assert gc.isenabled()
    assert steps == [(i, 40) for i in range(1, 41)]
    timed = calls[2:42]
    pairs = ["".join(timed[i : i + 2]) for i in range(0, 40, 2)]
    assert set(pairs) == {"ds", "sd"}
    assert all(a != b for a, b in zip(pairs[::2], pairs[1::2], strict=True))
    assert len(set(pairs[::2])) == 2, "the order does not follow a fixed beat"


def test_goes_on_for_as_long_as_asked() -> None:
    with products(1, size=2) as dense, products(1, size=2) as slim:
        found = compare_latency(dense, slim, [1], rounds=2, min_seconds=0.05)
    assert found.rows[0].rounds > 20


def test_ratios_are_formed_within_a_round() -> None:
    drift = np.array([1.0, 1.0, 10.0, 10.0, 10.0])
    row = summarise(4, np.stack([2 * drift, drift * [1, 1, 1, 1, 4]], axis=1), seed=0)
    assert row.speedup == 2
    assert row.ratio_of_medians == 2
    assert row.dense.mean_ms == pytest.approx(12.8)
    assert row.dense.images_per_second == pytest.approx(4000 / 12.8)
    assert row.slim.max_ms == 40, "the slow call counts"
    assert row.slim.p99_ms == pytest.approx(38.8)


def test_refuses_what_cannot_be_compared() -> None:
    with products(1, size=4) as dense, products(1, size=8) as slim:
        with pytest.raises(InputError, match=r"takes images of \[4, 4\] and model of \[8, 8\]"):
            compare_latency(dense, slim, [1])
        with pytest.raises(InputError, match=r"batch sizes \[\]: give one or more"):
            compare_latency(dense, dense, [])
        with pytest.raises(InputError, match="1 rounds after 5 warm-up pairs: ask for 2 rounds"):
            compare_latency(dense, dense, [1], rounds=1)
    with (
        products(1, size=4, batch="1") as fixed,
        pytest.raises(InputError, match="--batch-size 8: model takes 1 a call; give"),
    ):
        compare_latency(fixed, fixed, [1, 8])
