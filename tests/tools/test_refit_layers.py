"""The benchmark of the refit's layers solves for the usual ones as `slimdeploy` does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.refit import refit_model
from slimdeploy.slim.timm_models import describe
from tools.refit_layers import FIRST, PROJECTION, QKV, SECOND, Refit

KEEP = [list(range(17)), [0, *range(1, 17, 2)], [0, 3, 7, 11, 15], [0]]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


@pytest.fixture
def state(make_vit: Callable[..., Any]) -> Calibration:
    dense = make_vit()
    images = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Calibration(dense, describe(dense, "small"), images)


def test_the_usual_layers_are_solved_as_slimdeploy_solves_them(state: Calibration) -> None:
    ours, theirs = copy.deepcopy(state.dense), copy.deepcopy(state.dense)
    refit_model(state, theirs, KEEP, RidgeOptions())
    Refit(state, KEEP, {PROJECTION, SECOND}, RidgeOptions()).run(ours)
    for name, wanted in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "changed"),
    [(QKV, "attn.qkv"), (PROJECTION, "attn.proj"), (FIRST, "mlp.fc1"), (SECOND, "mlp.fc2")],
)
def test_only_what_is_named_changes(state: Calibration, layer: str, changed: str) -> None:
    model, before = copy.deepcopy(state.dense), weights(state.dense)
    Refit(state, KEEP, {layer}, RidgeOptions()).run(model)
    after = weights(model)
    moved = {name for name, x in before.items() if not torch.allclose(x, after[name], atol=1e-5)}
    assert moved
    assert all(changed in name for name in moved)
