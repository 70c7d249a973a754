"""`--shape auto`: what is chosen is what comes closest, and both paths measure alike."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from slimdeploy.counts import TRIED, counts_for_budget
from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.forward.running import batch_size
from slimdeploy.forward.search import Search
from slimdeploy.forward.slimming import ForwardRequest, slim_forward
from slimdeploy.graph import GraphOptions
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.impact import make_impact
from slimdeploy.slim.shapes import Trial
from slimdeploy.store import open_store
from tests.forward.models import Case

BUDGET = 0.4


def errors(lines: list[str]) -> dict[str, float]:
    found = [re.fullmatch(r"(\w+) counts: held-out error ([\d.]+)", line) for line in lines]
    return {match[1]: float(match[2]) for match in found if match}


@pytest.fixture(scope="module")
def case() -> Case:
    return Case("plain", "dynamo23")


def forward_search(case: Case, refit: bool) -> tuple[str, dict[str, float]]:
    lines: list[str] = []
    batch = batch_size(case.geometry.heads, case.geometry.tokens)
    with open_store() as store:
        free = store.free
        search = Search(
            case.model, case.dense, case.geometry, case.blocks, case.images, len(case.images),
            batch, store, BUDGET, 1, "cover", RidgeOptions() if refit else None, GraphOptions(),
            0, "model",
        )  # fmt: skip
        shape, layers = search.run("auto", lines.append)
        assert store.free == free
    assert [len(layer.keep) for layer in layers] == counts_for_budget(case.geometry, BUDGET, shape)
    return shape, errors(lines)


@pytest.mark.parametrize("refit", [True, False])
def test_both_paths_measure_the_same_errors_and_take_the_least(case: Case, refit: bool) -> None:
    lines: list[str] = []
    state = Calibration(case.torch, case.geometry, torch.from_numpy(case.images))
    trial = Trial(
        state, state.images, make_impact("cover"), RidgeOptions() if refit else None, BUDGET
    )
    shape, found = trial.best(lines.append), errors(lines)
    assert set(found) == set(TRIED)
    assert found[shape] == min(found.values())
    other_shape, other = forward_search(case, refit)
    assert other_shape == shape
    # The paths look at the stream before and behind the last norm.
    assert sorted(other, key=other.__getitem__) == sorted(found, key=found.__getitem__)


def test_the_chosen_shape_is_what_the_graph_has(case: Case) -> None:
    request = ForwardRequest(BUDGET, shape="auto")
    found = slim_forward(case.model, case.geometry, case.images, request)
    assert found.shape in TRIED
    counts = counts_for_budget(case.geometry, BUDGET, found.shape)
    assert [block.queries for block in found.blocks] == counts


def test_one_image_is_enough_to_try(case: Case) -> None:
    state = Calibration(case.torch, case.geometry, torch.from_numpy(case.images[:1]))
    assert Trial(state, state.images, make_impact("grid"), None, BUDGET).best() in TRIED
    assert np.isfinite(state.images.numpy()).all()
