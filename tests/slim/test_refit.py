"""Closed-form refit: it is the ridge solution, it helps, and it changes nothing it need not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.slim.batches import Batches, replaced
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.model import SlimVit
from slimdeploy.slim.refit import refit_model
from slimdeploy.slim.timm_models import describe
from slimdeploy.store import open_store

KEEP = [list(range(0, 17, 1)), [0, *range(1, 17, 2)], [0, 3, 7, 11, 15], [0]]


def refitted(
    model: Any, images: torch.Tensor, memory: int = 1 << 30, batch_size: int = 8, **options: Any
) -> Any:
    state = Calibration(model, describe(model, "small"), images, batch_size, memory)
    result = copy.deepcopy(model)
    refit_model(state, result, KEEP, RidgeOptions(**options))
    return result


def head_error(model: Any, dense: Any, images: torch.Tensor) -> float:
    with torch.no_grad():
        wanted = dense.norm(dense.forward_features(images))[:, 0]
        found = dense.norm(SlimVit(model, KEEP).forward_features(images))[:, 0]
    return float((found - wanted).square().sum() / wanted.square().sum())


def pictures(n: int, seed: int) -> torch.Tensor:
    """Smooth random images: a few large blobs, so that patches of one say something of others."""
    coarse = torch.randn(n, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic")


@pytest.mark.parametrize("variant", [{}, {"init_values": 0.3}], ids=str)
def test_refit_brings_unseen_images_closer(make_vit: Callable[..., Any], variant: dict) -> None:
    dense = make_vit(**variant)
    result = refitted(dense, pictures(64, 0), strength=0.01)
    unseen = pictures(32, 1)
    assert head_error(result, dense, unseen) < 0.5 * head_error(dense, dense, unseen)


def test_only_the_two_output_layers_change(make_vit: Callable[..., Any]) -> None:
    dense = make_vit()
    result = refitted(dense, pictures(32, 0))
    after = dict(result.named_parameters())
    changed = {n for n, p in dense.named_parameters() if not torch.equal(p, after[n])}
    assert changed
    assert all(".attn.proj." in name or ".mlp.fc2." in name for name in changed)
    assert not any(name.startswith("blocks.0.") for name in changed), "block 1 keeps all tokens"


def test_a_strong_prior_keeps_the_old_function(make_vit: Callable[..., Any]) -> None:
    dense, images = make_vit(init_values=0.3), pictures(16, 0)
    result = refitted(dense, images, strength=1e12)
    weight = result.blocks[1].mlp.fc2.weight
    gamma = dense.blocks[1].ls2.gamma
    assert torch.allclose(weight, dense.blocks[1].mlp.fc2.weight * gamma[:, None], atol=1e-5)
    assert torch.equal(result.blocks[1].ls2.gamma, torch.ones(48)), "LayerScale is folded"


def test_layers_without_a_bias_get_none(make_vit: Callable[..., Any]) -> None:
    dense = make_vit(proj_bias=False)
    result = refitted(dense, pictures(32, 0))
    assert result.blocks[1].mlp.fc2.bias is None
    assert result.state_dict().keys() == dense.state_dict().keys()


@pytest.mark.parametrize("variant", [{}, {"init_values": 0.3}], ids=str)
def test_activations_on_disk_and_other_batches_give_the_same_weights(
    make_vit: Callable[..., Any], variant: dict
) -> None:
    dense, images = make_vit(**variant), pictures(21, 0)
    in_memory = refitted(dense, images)
    on_disk = refitted(dense, images, memory=0)
    in_one = refitted(dense, images, batch_size=21)
    for name, weight in in_memory.state_dict().items():
        assert torch.equal(weight, on_disk.state_dict()[name]), name
        assert torch.allclose(weight, in_one.state_dict()[name], atol=1e-4), name


def test_batches_are_a_list_and_give_their_memory_back() -> None:
    parts = list(torch.randn(5, 4, 3).split(2))
    with open_store(budget=5 * 4 * 3 * 4) as store:
        held = Batches(store, 5)
        for part in parts:
            held.append(part)
        assert len(held) == 3
        assert list(map(len, replaced(held, torch.neg))) == [2, 2, 1]
        assert all(torch.equal(x, -part) for x, part in zip(held, parts, strict=True))
        other = Batches(store, 5)
        other.append(parts[0])
        assert store.on_disk == 1, "the budget was taken"
        held.release()
        other.release()
        assert (store.on_disk, store.free) == (0, 240)
