"""MAC accounting against published and computed figures."""

from __future__ import annotations

import pytest

from slimdeploy.macs import dense_macs, layer_macs, mac_reduction, model_macs
from slimdeploy.schedule import ModelGeometry
from tests.conftest import geometry

FIG5 = [197, 197, 160, 153, 121, 101, 83, 63, 50, 25, 20, 1]
"""Tokens kept per layer in Patch Slimming's Fig. 5, DeiT-S."""


def deit(width: int) -> ModelGeometry:
    return geometry(
        name="deit",
        input_size=(3, 224, 224),
        grid=(14, 14),
        depth=12,
        width=width,
        heads=width // 64,
        mlp_width=4 * width,
        num_classes=1000,
    )


@pytest.mark.parametrize(("width", "gmac"), [(192, 1.2537), (384, 4.5989), (768, 17.5638)])
def test_dense_deit(width: int, gmac: float) -> None:
    assert dense_macs(deit(width)).total / 1e9 == pytest.approx(gmac, abs=5e-5)


def test_the_papers_schedule_in_compact_form() -> None:
    assert model_macs(deit(384), FIG5).total / 1e9 == pytest.approx(2.33, abs=0.005)
    assert mac_reduction(deit(384), FIG5) == pytest.approx(0.494, abs=0.001)


@pytest.mark.parametrize(("width", "share"), [(192, 0.0695), (384, 0.0693), (768, 0.0692)])
def test_lossless_mode_saves_seven_percent(width: int, share: float) -> None:
    assert mac_reduction(deit(width), [197] * 11 + [1]) == pytest.approx(share, abs=5e-5)


def test_a_layer_by_hand() -> None:
    small = geometry(width=2, mlp_width=8)
    cost = layer_macs(small, queries=3, keys=5)
    assert cost.attention == 3 * 4 + 2 * 5 * 4 + 2 * 3 * 5 * 2 + 3 * 4
    assert cost.mlp == 2 * 3 * 2 * 8
    assert cost.total == cost.attention + cost.mlp
