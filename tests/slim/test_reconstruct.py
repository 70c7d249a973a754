"""Reconstruction costs two blocks a step, however deep the network is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.impact import make_impact
from slimdeploy.slim.reconstruct import GradientOptions, LayerProblem, reconstruct_by_gradient
from slimdeploy.slim.search import SearchOptions, search
from slimdeploy.slim.timm_models import describe

KEEP = [0, 3, 7, 9, 12]


def calibration(make_vit: Callable[..., Any], depth: int) -> Calibration:
    model = make_vit(depth=depth)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Calibration(model, describe(model, "small"), images, batch_size=2)


def problem(make_vit: Callable[..., Any], depth: int) -> LayerProblem:
    state = calibration(make_vit, depth)
    state.keep = {layer: [0, 3, 7] for layer in range(3, depth)} | {depth: [0]}
    return LayerProblem.collect(state, 2)


def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def epoch(found: LayerProblem) -> int:
    return flops(lambda: reconstruct_by_gradient(found, KEEP, GradientOptions(epochs=1), 0))


def test_an_epoch_costs_the_same_in_a_deeper_network(make_vit: Callable[..., Any]) -> None:
    shallow, deep = (problem(make_vit, depth) for depth in (4, 12))
    cost = epoch(shallow)
    assert epoch(deep) == cost > 0

    model = deep.state.dense

    def train_network() -> None:
        for images in deep.state.batches():
            model(images).sum().backward()

    network = flops(train_network)
    assert cost < 2.2 / 12 * network, "two blocks of twelve, and they are slim"


def test_data_are_collected_in_one_pass_for_all_layers(make_vit: Callable[..., Any]) -> None:
    state = calibration(make_vit, 8)
    state.keep = {layer: [0] for layer in range(1, 9)}
    first = flops(lambda: LayerProblem.collect(state, 7))
    assert first == flops(lambda: [state.dense.forward_features(x) for x in state.batches()])
    assert flops(lambda: LayerProblem.collect(state, 3)) == 0


@pytest.mark.parametrize("reconstruct", ["gradient", "refit"])
def test_a_search_costs_in_proportion_to_depth(
    make_vit: Callable[..., Any], reconstruct: Any
) -> None:
    costs = {}
    for depth in (4, 8, 12):
        state, counts = calibration(make_vit, depth), [9] * (depth - 1) + [1]
        options = SearchOptions(counts=counts, reconstruct=reconstruct)
        costs[depth] = flops(lambda: search(state, make_impact("random"), options))  # noqa: B023
    assert costs[12] - costs[8] == pytest.approx(costs[8] - costs[4], rel=0.02)
