"""The shape of counts that `slim` chooses is remembered, and tolerance has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimdeploy.counts import TRIED
from slimdeploy.errors import InputError
from slimdeploy.slim.pipeline import SlimRequest, slim_model, steps
from slimdeploy.slim.search_state import SearchState
from slimdeploy.slim.timm_models import describe


def run(model: Any, request: SlimRequest, saved: SearchState | None = None) -> tuple[Any, list]:
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    lines: list[str] = []
    geometry = describe(model, "small")
    found = slim_model(model, geometry, images, request, saved, lines.append)
    if saved is None:
        assert len(lines) == steps(geometry, request)
    return found, lines


def test_a_choice_is_remembered_by_a_run_that_goes_on(
    make_vit: Callable[..., Any], tmp_path: Path
) -> None:
    request = SlimRequest(mac_reduction=0.4, shape="auto")
    first, lines = run(make_vit(), request)
    assert first.shape in TRIED
    assert sum("held-out error" in line for line in lines) == len(TRIED)
    other = next(shape for shape in TRIED if shape != first.shape)
    saved = SearchState(tmp_path / "work", {})
    saved.remember("shape", other)
    again, lines = run(make_vit(), request, saved)
    assert again.shape == other
    assert not any("held-out error" in line for line in lines)


def test_a_given_shape_is_taken_and_a_tolerance_has_none(make_vit: Callable[..., Any]) -> None:
    found, _ = run(make_vit(), SlimRequest(mac_reduction=0.4, shape="linear"))
    assert found.shape == "linear"
    found, _ = run(make_vit(), SlimRequest(tolerance=0.5, reconstruct="none"))
    assert found.shape is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give one of --mac-reduction and --tolerance"),
        ({"mac_reduction": 0.4, "tolerance": 0.02, "shape": "auto"}, "give one of --mac-red"),
        ({"tolerance": 5.0}, "--tolerance 5.0: must be between 0 and 1"),
        ({"tolerance": 0.1, "shape": "linear"}, "--shape: goes with --mac-reduction, not"),
        ({"tolerance": 0.1, "multiple_of": 8}, "--multiple-of: goes with --mac-reduction, not"),
        ({"mac_reduction": 0.4, "search_images": 0}, "--search-images 0: must be at least 1"),
    ],
)
def test_senseless_requests_are_refused_before_any_work(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        SlimRequest(**fields).check()
