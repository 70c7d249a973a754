"""The token of all that were dropped: without it, of equal patches, and in its own refit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from slimdeploy.dynamic import Dynamic
from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.dynamic import DynamicVit, refit_dynamic
from slimdeploy.slim.timm_models import describe
from tools.rest_token import RestVit, folded, refit

COUNTS, NORM = [17, 9, 5, 1], Dynamic(scorer="token-norm")


@pytest.fixture
def dense(make_vit: Callable[..., Any]) -> Any:
    return make_vit(init_values=0.5)  # with LayerScale


@pytest.fixture
def images() -> Tensor:
    return torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_without_a_rest_it_is_the_dynamic_model(dense: Any, images: Tensor) -> None:
    plain = DynamicVit(dense, COUNTS, NORM)
    torch.testing.assert_close(RestVit(dense, COUNTS, NORM, None)(images), plain(images))


@torch.no_grad()
@pytest.mark.parametrize(("share", "exact"), [(1.0, True), (0.0, False)])
def test_equal_patches_lose_nothing_where_the_rest_has_their_weight(
    dense: Any, share: float, exact: bool
) -> None:
    dense.pos_embed[:, 1:] = dense.pos_embed[:, 1:2]
    grey = torch.linspace(-1, 1, 4)[:, None, None, None].expand(-1, 3, 64, 64)
    slim = RestVit(dense, COUNTS, NORM, share)(grey)
    assert torch.allclose(slim, dense(grey), atol=1e-4) == exact


@torch.no_grad()
def test_folding_layer_scale_changes_nothing(dense: Any, images: Tensor) -> None:
    torch.testing.assert_close(folded(dense)(images), dense(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_refit_without_a_rest_is_that_of_slimdeploy(dense: Any, images: Tensor) -> None:
    state = Calibration(dense, describe(dense, "small"), images)
    theirs = DynamicVit(copy.deepcopy(dense), COUNTS, NORM)
    refit_dynamic(state, theirs, RidgeOptions())
    ours = RestVit(folded(dense), COUNTS, NORM, None)
    refit(state, ours, RidgeOptions())
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_refit_brings_a_model_with_a_rest_closer(dense: Any, images: Tensor) -> None:
    state = Calibration(dense, describe(dense, "small"), images)
    model = RestVit(folded(dense), COUNTS, NORM, 0.5)
    before = (model(images) - dense(images)).square().mean()
    refit(state, model, RidgeOptions())
    assert (model(images) - dense(images)).square().mean() < before / 2
