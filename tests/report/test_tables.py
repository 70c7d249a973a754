"""What a reader sees on the terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console, RenderableType

from slimdeploy.engine import EngineInfo
from slimdeploy.images import ImageFolder
from slimdeploy.measure.accuracy import Accuracy, compare_accuracy, count
from slimdeploy.measure.timing import LatencyComparison, TimingProtocol, summarise
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.report.tables import accuracy_table, latency_table, recall_table, schedule_table

PLAIN = Preprocessing(
    input_size=(3, 8, 8), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic", crop_pct=1
)
DENSE = EngineInfo("dense[1].onnx", "onnxruntime", "1.31", "CPUExecutionProvider", 2)
SLIM = replace(DENSE, artifact="slim.onnx")


def shown(renderable: RenderableType) -> str:
    console = Console(width=200, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def lines_of(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_latency_is_shown_with_its_protocol() -> None:
    times = np.tile([[20.0, 10.0], [22.0, 11.0]], (10, 1))
    protocol = TimingProtocol(DENSE, SLIM, "A Processor", 5, 20, 0.0, 0)
    text = shown(latency_table(LatencyComparison(protocol, (summarise(4, times, 0),))))
    assert lines_of(text, "4", "dense", "21.00", "22.00", "190.5")
    assert lines_of(text, "slim", "10.50", "2.00x 2.00 to 2.00")
    assert lines_of(text, "dense dense[1].onnx, slim slim.onnx: onnxruntime 1.31", "2 threads")
    assert lines_of(text, "A Processor; 20 rounds or more after 5 warm-up")
    assert lines_of(text, "no outlier dropped")


def test_two_settings_are_both_named() -> None:
    protocol = TimingProtocol(DENSE, replace(SLIM, threads=1), "A Processor", 5, 20, 0.0, 0)
    text = shown(latency_table(LatencyComparison(protocol, ())))
    assert "2 threads against onnxruntime 1.31, CPUExecutionProvider, 1 thread" in text


def accuracy(engine: EngineInfo, wrong: int) -> Accuracy:
    labels = [0, 1] * 10
    logits = np.eye(2, dtype=np.float32)[labels]
    logits[:wrong] = logits[:wrong, ::-1]
    files = tuple(Path(f"{i}.png") for i in range(20))
    folder = ImageFolder(Path(), ("cat[s]", "dog"), files, tuple(labels))
    return count(engine, folder, PLAIN, logits)


def test_accuracy_is_shown_side_by_side() -> None:
    dense, slim = accuracy(DENSE, 1), accuracy(SLIM, 4)
    text = shown(accuracy_table(dense, slim, compare_accuracy(dense, slim)))
    assert lines_of(text, "dense[1].onnx", "95.00%", "76.39% to 99.11%", "20")
    assert lines_of(text, "slim.onnx", "80.00%")
    assert lines_of(text, "slim - dense: -15.00 points", "agreement 85.00%")
    assert lines_of(text, "right only dense 3, only slim 0, McNemar p = 0.250")
    assert lines_of(
        text, "slim.onnx: expected calibration error, 15 bins: equal-width", "by chance"
    )
    assert lines_of(text, "KL(dense || slim)", "cosine of logits")
    assert "slim -" not in shown(accuracy_table(dense))


def test_recall_is_shown_by_class() -> None:
    text = shown(recall_table([accuracy(DENSE, 1), accuracy(SLIM, 4)]))
    assert lines_of(text, "cat[s]", "90.00%", "80.00%", "10")
    assert lines_of(text, "dog", "100.00%", "80.00%", "10")


def test_a_schedule_is_shown_layer_by_layer() -> None:
    text = shown(schedule_table([100, 50, 1], [90, 40, 10], 100, [100, 100, 100]))
    assert lines_of(text, "2", "50", "50.0%", "40.0%")
    assert lines_of(text, "53.3% fewer")
    bars = [line.count("█") for line in text.splitlines() if "█" in line]
    assert bars == [20, 10, 1]
    text = shown(schedule_table([5], [10**9], 10, [2 * 10**9], (3 * 10**9, 4 * 10**9)))
    assert lines_of(text, "blocks: 1.000 of 2.000 GMAC, 50.0% fewer")
    assert lines_of(text, "model: 3.000 of 4.000 GMAC, 25.0% fewer")
