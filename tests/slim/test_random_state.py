"""A search depends on its seed, not on the process's random state, which it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from slimdeploy.slim.choices import ImpactName, Reconstruct
from slimdeploy.slim.pipeline import SlimRequest, slim_model
from slimdeploy.slim.timm_models import describe

WAYS = [
    *(("refit", impact) for impact in get_args(ImpactName)),
    *((way, "joint") for way in get_args(Reconstruct) if way != "refit"),
]


@pytest.mark.parametrize(("reconstruct", "impact"), WAYS)
def test_a_search_draws_from_its_own_seed(
    make_vit: Callable[..., Any], reconstruct: Any, impact: Any
) -> None:
    model = make_vit()
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    request = SlimRequest(mac_reduction=0.4, shape="auto", impact=impact, reconstruct=reconstruct)
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        found.append(slim_model(model, describe(model, "small"), images, request))
        assert torch.equal(torch.get_rng_state(), before)
    one, two = found
    assert one.layers == two.layers
    if one.model is not None and two.model is not None:
        for first, second in zip(one.model.parameters(), two.model.parameters(), strict=True):
            assert torch.equal(first, second)
