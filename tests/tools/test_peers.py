"""The peers: at full counts they are the dense model, and each step is what its paper says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slimdeploy.macs import dense_macs
from slimdeploy.slim.timm_models import describe
from tests.slim.test_refit import pictures
from tools.peers import EvitVit, TomeVit, evit_for_budget, peer_macs, tome_for_budget
from tools.peers.evit import fused
from tools.peers.tome import merge

PEERS = [EvitVit, TomeVit]


@pytest.mark.parametrize("peer", PEERS)
def test_keeping_all_is_the_dense_model(make_vit: Callable[..., Any], peer: Any) -> None:
    model, images = make_vit(), pictures(2, 0)
    with torch.no_grad():
        found, wanted = peer(model, [17] * 4).eval()(images), model(images)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("peer", PEERS)
def test_macs_are_those_that_torch_counts(make_vit: Callable[..., Any], peer: Any) -> None:
    """But for the similarities of ToMe, which slimdeploy's way of counting leaves out."""
    model = make_vit()
    geometry = describe(model, "small")
    counts = (evit_for_budget if peer is EvitVit else tome_for_budget)(geometry, 0.3)
    assert counts == sorted(counts, reverse=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        peer(model, counts).eval()(pictures(1, 0))
    extra = 0
    if peer is TomeVit:
        held = [17, *counts]
        halves = [(k - k // 2) * (k // 2) for k, n in zip(held, counts[:-1], strict=False) if n < k]
        extra = sum(halves) * 16
    found = counter.get_total_flops() / 2
    assert found == pytest.approx(peer_macs(geometry, counts) + extra, rel=1e-6)
    assert 1 - peer_macs(geometry, counts) / dense_macs(geometry).total >= 0.3


def test_evit_keeps_the_attended_and_fuses_the_rest() -> None:
    x = torch.arange(5.0)[None, :, None].expand(1, 5, 2)
    result = fused(x, torch.tensor([[0.1, 0.4, 0.3, 0.2]]), 2)
    assert result[0, :, 0].tolist() == pytest.approx([0, 2, 3, (0.1 * 1 + 0.2 * 4) / 0.3])


def test_tome_merges_the_most_similar_pair_by_size() -> None:
    keys = torch.tensor([[[1.0, 0], [0, 1], [1, 0.1], [1, 0], [-1, 0]]])
    x = torch.tensor([[[0.0], [1], [2], [3], [4]]])
    size = torch.tensor([[[1.0], [1], [3], [1], [1]]])
    merged, sizes = merge(x, size, keys, 1)  # 2 goes into 3: their keys are the nearest
    assert merged[0, :, 0].tolist() == pytest.approx([0, 4, 1, (2 * 3 + 3) / 4])
    assert sizes[0, :, 0].tolist() == [1, 1, 1, 4]


def test_tome_loses_no_patch(make_vit: Callable[..., Any]) -> None:
    slim = TomeVit(make_vit(), [13, 10, 7, 7]).eval()
    with torch.no_grad():
        slim(pictures(3, 0))
    assert slim.size.sum(1).flatten().tolist() == [17, 17, 17]
    assert slim.size[:, 0].flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize("peer", PEERS)
def test_gradients_reach_the_weights(make_vit: Callable[..., Any], peer: Any) -> None:
    slim = peer(make_vit(), [13, 10, 7, 7]).train()
    slim(pictures(2, 0)).square().sum().backward()
    assert all(p.grad is not None for p in slim.dense.blocks.parameters())
