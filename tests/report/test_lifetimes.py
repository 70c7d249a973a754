"""The schedule's picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from slimdeploy.macs import dense_macs, model_macs
from slimdeploy.report.lifetimes import draw_lifetimes, lifetimes
from tests.conftest import geometry

KEEP = [list(range(17)), [0, 1, 2, 3, 4], [0, 1, 2], [0]]


def test_lifetimes_count_the_layers_of_each_patch() -> None:
    lives = lifetimes(KEEP, (4, 4), prefix=1)
    assert lives.sum() == 16 + 4 + 2
    assert np.array_equal(lives[0], [3, 3, 2, 2])
    assert (lives[1:] == 1).all()


def test_the_picture_is_a_whole_png(tmp_path: Path) -> None:
    path, model = tmp_path / "lives.png", geometry()
    slim = model_macs(model, [len(ids) for ids in KEEP])
    draw_lifetimes(KEEP, model.grid, 1, slim, dense_macs(model), path)
    with Image.open(path) as image:
        image.load()
        assert min(image.size) > 300
        assert len(set(image.convert("L").get_flattened_data())) > 20
