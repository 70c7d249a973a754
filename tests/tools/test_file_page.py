"""The page of slimmed files: a line a file, and the mean of seeds."""

import numpy as np
import pytest

from tools.file_page import page
from tools.hits import packed

RIGHT = np.array([True, True, False, False])


def row(seed: int, right: list[bool]) -> dict[str, object]:
    hits = np.array(right)
    gain = [100 * (float(hits.mean()) - 0.5), 0.0, 0.0]
    return {
        "study": "cells", "mac_reduction": 0.46, "by": "timm", "chosen_by": "predictor",
        "fitted": 192, "seed": seed, "images": 4, "torch_in": "float32",
        "top1": float(hits.mean()), "to_dense": gain, "to_torch": [0.0, 0.0, 0.0],
        "same_class_as_torch": 1.0, "same_tokens": 1.0,
        "right": packed(hits), "dense_right": packed(RIGHT),
        "seconds": 30.0, "cpu_seconds": 40.0 + seed, "peak_mb": 900, "cores": 2, "load": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("measured", [([True] * 4, 50.0), ([False] * 4, -50.0)])
def test_a_file_has_a_line(measured: tuple[list[bool], float]) -> None:
    right, points = measured
    text = page([row(0, right)])
    assert f"| cells | 46% | predictor | timm | 192 | 0 | 4 | {np.mean(right):.2%} |" in text
    assert f"| {points:+.2f} (+0.00 to +0.00) |" in text
    assert "Several seeds" not in text


def test_seeds_are_averaged_image_by_image() -> None:
    # Seed 0 loses the first image, seed 1 gains the third: as many right as the dense model has.
    seeds = [row(0, [False, True, False, False]), row(1, [True, True, True, False])]
    text = page(seeds)
    (line,) = (x for x in text.splitlines() if "| 0, 1 |" in x)
    assert line.startswith("| cells | 46% | predictor | timm | 192 | 0, 1 | +0.00 (")
    # Half of a seed's gain, one image of four: no draw of images can go beyond.
    low, high = (float(x) for x in line.split("(")[1].split(")")[0].split(" to "))
    assert -50 <= low < 0 < high <= 50
    assert line.endswith("| 40 |")


def test_seeds_of_another_file_are_not_averaged() -> None:
    other = row(1, [True] * 4) | {"by": "hugging-face"}
    assert "Several seeds" not in page([row(0, [True] * 4), other])
