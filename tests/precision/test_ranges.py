"""Histograms, where to clip, the file of ranges, and patches as a product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.errors import InputError
from slimdeploy.graph.files.storage import save_model
from slimdeploy.graph.passes import run as run_passes
from slimdeploy.graph.work import Work
from slimdeploy.precision.calibration import ArrayCalibration
from slimdeploy.precision.ranges import Ranges, ranges_of
from slimdeploy.precision.thresholds import METHODS, Histogram, threshold
from slimdeploy.precision.unfold_patches import UnfoldPatches
from tests.graph.exports import export, run
from tests.graph.text import model

VALUES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_a_histogram_counts_everything_whatever_the_order(batches: list[list[float]]) -> None:
    histogram = Histogram()
    for batch in batches:
        histogram.add(np.asarray(batch, np.float32))
    everything = np.concatenate([np.asarray(batch, np.float32) for batch in batches])
    assert histogram.largest == np.abs(everything).max()
    assert (histogram.lowest, histogram.highest) == (everything.min(), everything.max())
    assert int(histogram.counts.sum()) == everything.size
    for method in METHODS:
        clip = threshold(histogram, method, 99.0)
        assert 0 <= clip <= histogram.largest
        assert 0 <= histogram.share_beyond(clip) <= 1
    assert threshold(histogram, "minmax", 99.0) == histogram.largest


def test_outliers_are_clipped_by_the_methods_that_are_to() -> None:
    histogram = Histogram()
    histogram.add(np.append(np.random.default_rng(0).standard_normal(100_000), [40.0, -50.0]))
    assert threshold(histogram, "minmax", 99.9) == 50.0
    assert 3.0 < threshold(histogram, "percentile", 99.9) < 3.7
    assert 2.0 < threshold(histogram, "entropy", 99.9) < 20.0
    assert histogram.share_beyond(10.0) == pytest.approx(2 / 100_002)
    with pytest.raises(InputError, match="--percentile 0"):
        threshold(histogram, "percentile", 0)


def test_a_ranges_file_says_what_it_is_and_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save_model(model("float[B,4] x => float[B,4] y", "y = Tanh(x)"), path)
    histogram = Histogram()
    histogram.add(np.array([-1.0, 0.5, 3.0]))
    images = ArrayCalibration(np.ones((2, 3, 4, 4), np.float32), "two.npz")
    made = ranges_of({"x": histogram}, path, images, "minmax")
    made.write(tmp_path / "r.json")
    found = Ranges.read(tmp_path / "r.json")
    assert found == made
    assert found.thresholds == {"x": 3.0}
    assert (found.images.source, found.images.count) == ("two.npz", 2)
    found.require_for(path, tmp_path / "r.json")
    save_model(model("float[B,4] x => float[B,4] y", "y = Erf(x)"), path)
    with pytest.raises(InputError, match="ranges of another file"):
        found.require_for(path, tmp_path / "r.json")


def test_patches_as_a_product_are_the_same_numbers() -> None:
    work = Work.of(export("plain", "dynamo20", True))
    before = work.export()
    run_passes([UnfoldPatches()], work)
    ops = [node.op for node in work.graph.nodes]
    assert "Conv" not in ops
    assert ops.count("Transpose") == [node.op_type for node in before.graph.node].count("Transpose")
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    exact = run(before, images)
    assert np.abs(run(work.export(), images) - exact).max() < 2e-5 * np.abs(exact).max()


def test_patches_that_stay_pixels_are_the_same_numbers() -> None:
    weight = np.random.default_rng(0).standard_normal((2, 3, 2, 2)).astype(np.float32)
    source = model(
        "float[B,3,64,64] image => float[B,2,32,32] y",
        "y = Conv<strides=[2, 2]>(image, w)",
        w=weight,
    )
    work = Work.of(source)
    run_passes([UnfoldPatches()], work)
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    assert np.allclose(run(work.export(), images), run(source, images), atol=1e-4)


def test_a_convolution_that_overlaps_is_left_alone() -> None:
    weight = np.ones((2, 3, 3, 3), np.float32)
    work = Work.of(model("float[B,3,6,6] x => float[B,2,4,4] y", "y = Conv(x, w)", w=weight))
    run_passes([UnfoldPatches()], work)
    assert [node.op for node in work.graph.nodes] == ["Conv"]
