"""The picture and the table of a sweep: what is drawn, and that labels can be read."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slimdeploy.measure.sweep import SweepGroup, group_points
from slimdeploy.report.front import DenseReference, draw_front, front_figure
from slimdeploy.report.front_table import front_table
from tests.measure.test_accuracy import accuracy_of
from tests.measure.test_sweep_record import latency, point
from tests.report.test_tables import lines_of, shown

DENSE = DenseReference(top1=0.9, macs=1e9, name="vit")


def groups(
    impacts: list[str], budgets: list[float], seeds: int = 1, batches: tuple[int, ...] = ()
) -> list[SweepGroup]:
    generator = np.random.default_rng(0)
    dense = np.arange(500) >= 50
    points, right = [], {}
    for seed in range(seeds):
        for impact in impacts:
            for budget in budgets:
                rows = tuple(latency(1 / (1 - budget), batch) for batch in batches)
                points.append(point(impact, budget, seed, latency=rows))
                right[points[-1].name] = dense & (generator.random(500) > 0.1 * budget)
    return group_points(points, right, dense)


@pytest.mark.parametrize("batches", [(), (1,), (1, 8)])
@pytest.mark.parametrize("impacts", [["cover"], ["cover", "grid", "path", "class-attention"]])
def test_nothing_overlaps(impacts: list[str], batches: tuple[int, ...]) -> None:
    budgets = [0.3, 0.42, 0.46, 0.5, 0.54, 0.58, 0.6]
    figure = front_figure(groups(impacts, budgets, 2, batches), DENSE, 500)
    figure.canvas.draw()
    assert len(figure.axes) == 1 + len(batches)
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
        assert len(boxes) >= 3
        for left, right in pairwise(sorted(boxes, key=lambda box: box.x0)):
            assert left.x1 < right.x0
    (legend,) = figure.legends
    words = {text.get_text() for text in legend.get_texts()}
    assert {*impacts, "Pareto front (filled)", "dense: 90.00%"} == words
    whole = figure.bbox
    for artist in (legend, figure._suptitle, *(axes.xaxis.label for axes in figure.axes)):
        box = artist.get_window_extent()
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1


def test_marks_stand_where_the_numbers_are(tmp_path: Path) -> None:
    found = groups(["cover", "grid"], [0.3, 0.6], 1, (1,))
    figure = front_figure(found, DENSE, 500)
    macs, speed = figure.axes
    for axes, dense_x in ((macs, 1e9), (speed, 1.0)):
        dots = {
            (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
            for line in axes.lines
            if len(line.get_xdata()) == 1
        }
        assert any((x, y) == pytest.approx((dense_x, 90)) for x, y in dots)
        assert all(any(y == pytest.approx(100 * g.top1) for _, y in dots) for g in found)
    bars = [axes.containers for axes in (macs, speed)]
    assert all(c.has_yerr for row in bars for c in row)
    assert [c.has_xerr for c in bars[0]] == [False] * 4
    assert [c.has_xerr for c in bars[1]] == [True] * 4
    paths = [tmp_path / "front.png", tmp_path / "front.svg"]
    draw_front(found, DENSE, 500, paths)
    with Image.open(paths[0]) as image:
        assert image.size[0] > image.size[1]
    assert "<svg" in paths[1].read_text()


@pytest.mark.parametrize("name", ["price$x$_{.onnx", "a$b", "$$"])
def test_a_name_is_no_formula(name: str, tmp_path: Path) -> None:
    found = groups(["cover"], [0.3])
    draw_front(found, replace(DENSE, name=name), 500, [tmp_path / "front.svg"])
    figure = front_figure(found, replace(DENSE, name=name), 500)
    assert figure.get_suptitle().replace(r"\$", "$").startswith(f"{name}: 500 test images")


def test_the_table() -> None:
    logits = np.eye(2, dtype=np.float32)[[0] * 5 + [1] * 5]
    dense = accuracy_of(logits, [0] * 5 + [1] * 5)
    found = groups(["cover", "grid"], [0.3, 0.6], 2, (1, 8))
    protocol = {
        "rounds": 50, "cpu": "A Processor",
        "dense": {"runtime": "onnxruntime", "version": "1", "provider": "CPU", "threads": 1},
    }  # fmt: skip
    text = shown(front_table(found, dense, 10**9, protocol, ["a remark"]))
    assert lines_of(text, "dense", "100.00%")
    assert lines_of(text, "cover", "60.0%", "2.50x (2.40 to 2.60)")
    assert lines_of(text, "mean of 2 seeds")
    assert lines_of(text, "A Processor")
    assert lines_of(text, "a remark")
    untimed = shown(front_table(groups(["cover"], [0.3]), dense, 10**9, None))
    assert "interleaved" not in untimed
