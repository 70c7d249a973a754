"""The picture of what is kept: the pixels where they belong, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slimdeploy.errors import InputError
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.report.kept_patches import draw_kept_patches, fade, kept_mask

KEEP = [[0, 1, 2, 3, 4, 5, 6], [0, 1, 6], [0]]
GRID = (2, 3)


def test_the_mask_counts_from_the_first_patch() -> None:
    assert kept_mask(KEEP[1], GRID, 1).tolist() == [[True, False, False], [False, False, True]]
    assert not kept_mask(KEEP[2], GRID, 1).any()


def test_kept_pixels_are_untouched_and_others_are_pale() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (20, 30, 3), dtype=np.uint8)
    faded = fade(pixels, kept_mask(KEEP[1], GRID, 1))
    np.testing.assert_array_equal(faded[:10, :10], pixels[:10, :10])
    np.testing.assert_array_equal(faded[10:, 20:], pixels[10:, 20:])
    assert faded[:10, 10:].min() >= 224
    assert faded[10:, :20].min() >= 224


def test_writes_a_picture_with_a_row_for_each_photograph(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (60, 40), colour) for colour in ("red", "blue"))
    path = tmp_path / "new" / "kept.png"
    draw_kept_patches(
        [red, blue], [KEEP, KEEP], GRID, 1, path, layers=[1, 2], macs=(1e9, 2e9), title="T"
    )
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    # The photograph, and every patch of layer 1, and two patches of six of layer 2.
    reds = (pixels == [255, 0, 0]).all(axis=2).sum()
    panel = reds / (2 + 2 / 6)
    assert panel == pytest.approx((2.1 * 160) ** 2 * 40 / 60, rel=0.2)
    assert reds == pytest.approx((pixels == [0, 0, 255]).all(axis=2).sum(), rel=0.02)
    assert [p.name for p in path.parent.iterdir()] == ["kept.png"]


def test_layers_are_chosen_where_patches_remain(tmp_path: Path) -> None:
    photograph = Image.new("L", (50, 30), 90)
    small = Preprocessing(
        input_size=(3, 20, 30), mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest", crop_pct=1
    )
    path = tmp_path / "kept.png"
    draw_kept_patches([photograph], [KEEP], GRID, 1, path, preprocessing=small)
    with Image.open(path) as picture:
        assert picture.width == pytest.approx(3 * 2.1 * 160, abs=2), "photograph, layers 1 and 2"


def test_each_photograph_may_have_its_own_patches(tmp_path: Path) -> None:
    white, path = Image.new("RGB", (60, 40), "red"), tmp_path / "kept.png"
    draw_kept_patches([white, white], [[[0, 1]], [[0, 1, 2, 3, 4, 5, 6]]], GRID, 1, path)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    reds = (pixels == [255, 0, 0]).all(axis=2)
    half = reds.shape[0] // 2
    upper, lower = (rows[:, reds.shape[1] // 2 :].sum() for rows in (reds[:half], reds[half:]))
    assert lower == pytest.approx(6 * upper, rel=0.1)


def test_refuses_photographs_without_kept_patches(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs images, and what is kept of each"):
        draw_kept_patches([Image.new("L", (9, 9))], [], GRID, 1, tmp_path / "x.png")


@pytest.mark.parametrize(
    ("keep", "layers", "message"),
    [
        (KEEP, [4], "layer 4 does not exist: the schedule has 1 to 3"),
        (KEEP, [], "needs a layer at least"),
        ([[0, 7]], [1], "layer 1 keeps token 7, but a grid of 2 x 3 patches after 1 prefix"),
    ],
)
def test_refuses_what_does_not_exist(
    tmp_path: Path, keep: list[list[int]], layers: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        draw_kept_patches(
            [Image.new("L", (9, 9))], [keep], GRID, 1, tmp_path / "x.png", layers=layers
        )
    assert not list(tmp_path.iterdir())
