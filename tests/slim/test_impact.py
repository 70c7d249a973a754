"""The estimators against brute force on a tiny model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from slimdeploy.errors import InputError
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.choices import ImpactName
from slimdeploy.slim.impact import make_impact
from slimdeploy.slim.impact.joint import JointImpact, elimination_ranks
from slimdeploy.slim.model import (
    attention_map,
    mlp_half,
    queries_keys_values,
    select,
    slim_block,
)
from slimdeploy.slim.timm_models import describe


def half_slimmed(make_vit: Callable[..., Any], **variant: Any) -> Calibration:
    """Layers 4 and 3 slimmed, 2 and 1 to come."""
    model = make_vit(**variant)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    state = Calibration(model, describe(model, "small"), images, batch_size=2)
    state.keep = {4: list(state.geometry.head_reads), 3: [0, 1, 5, 9, 16]}
    return state


@torch.no_grad()
def brute_force_path_scores(state: Calibration, layer: int) -> torch.Tensor:
    """Eq. 6 as it is written: a product of N x N matrices for every path of heads."""
    n, depth, total = state.tokens, state.depth, torch.zeros(state.tokens, dtype=torch.float64)
    for before, after in state.streams(layer - 1, layer):
        maps = {}
        for later, stream in state.suffix(after, layer):
            small = attention_map(state.slim.blocks[later - 1], stream, state.rows(later)).double()
            full = torch.zeros(*small.shape[:2], n, n, dtype=torch.float64)
            rows, columns = state.keep[later], state.keep.get(later - 1, list(range(n)))
            full[:, :, torch.tensor(rows)[:, None], torch.tensor(columns)] = small
            maps[later] = full
        own = attention_map(state.dense.blocks[layer - 1], before, None).double()
        heads = range(own.shape[1])
        for image in range(len(before)):
            for path in itertools.product(heads, repeat=depth - layer):
                a = torch.eye(n, dtype=torch.float64)
                for later, head in zip(range(depth, layer, -1), path, strict=True):
                    a = a @ maps[later][image, head]
                for head in heads:
                    u = own[image, head] @ before[image].abs().double()
                    for i in range(n):
                        total[i] += torch.linalg.matrix_norm(torch.outer(a[:, i], u[i])) ** 2
    return total


@pytest.mark.parametrize("layer", [2])
def test_the_path_score_is_the_papers_sum_over_head_paths(
    make_vit: Callable[..., Any], layer: int
) -> None:
    state = half_slimmed(make_vit)
    found = make_impact("path").scores(state, layer)
    wanted = brute_force_path_scores(state, layer)
    ratio = found / wanted
    assert float((ratio / ratio.mean() - 1).abs().max()) < 1e-5


@torch.no_grad()
def read_with_gates(state: Calibration, x: torch.Tensor, gates: torch.Tensor, layer: int) -> Any:
    """What the head reads when each key's unnormalised attention is multiplied by exp(gate)."""
    block, rows = state.dense.blocks[layer], state.rows(layer + 1)
    kept = attention_map(block, x, rows) * gates.exp()[:, None, None, :]
    _, _, v = queries_keys_values(block.attn, block.norm1(x), rows)
    mixed = ((kept / kept.sum(-1, keepdim=True)) @ v).transpose(1, 2).flatten(2)
    y = mlp_half(block, select(x, rows) + block.ls1(block.attn.proj(mixed)))
    for later in range(layer + 2, state.depth + 1):
        y = slim_block(state.dense.blocks[later - 1], y, state.rows(later))
    return state.dense.norm(y)


def test_joint_sensitivities_are_those_of_finite_differences(make_vit: Callable[..., Any]) -> None:
    """The Gram matrix that joint eliminates by, from gates moved one by one."""
    state = half_slimmed(make_vit)
    joint, layer, step = JointImpact(projections=2, seed=5), 2, 0.02
    (x,) = next(iter(state.streams(layer)))
    generator = torch.Generator().manual_seed(5)
    found = joint._sensitivity_gram(state, x, layer, generator)
    sides = []
    for sign in (1, -1):
        gates = [sign * step * torch.eye(state.tokens)[i].expand(len(x), -1) for i in range(17)]
        sides.append(torch.stack([read_with_gates(state, x, gate, layer) for gate in gates]))
    slopes = (sides[0] - sides[1]) / (2 * step)  # [tokens, B, reads, D]
    generator.manual_seed(5)
    wanted = torch.zeros_like(found)
    for _ in range(2):
        directions = torch.randn(slopes.shape[1:], generator=generator)
        g = torch.einsum("tbrd,brd->bt", slopes, directions).double()
        wanted += g.T @ g / 2
    assert float((found - wanted).norm() / wanted.norm()) < 0.01


def test_greedy_elimination_matches_the_definition() -> None:
    g = torch.randn(40, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    gram, kept = g.T @ g, {2, 5}
    ranks = elimination_ranks(gram, kept)
    gone: list[int] = []
    for step in range(5):
        free = [i for i in range(7) if i not in kept and i not in gone]
        costs = {i: float(gram[[*gone, i]][:, [*gone, i]].sum()) for i in free}
        best = min(costs, key=costs.__getitem__)
        assert ranks[best] == step
        gone.append(best)
    assert all(ranks[i] == 7 for i in kept)


def test_joint_sees_redundancy() -> None:
    """Of three tokens, two that cancel each other go together, though each alone matters more."""
    g = torch.tensor([[1.0, -1.0, 0.9]], dtype=torch.float64)
    assert elimination_ranks(g.T @ g, set()).argsort().tolist()[:1] == [2]
    pair = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.1]], dtype=torch.float64)
    assert set(elimination_ranks(pair.T @ pair, set()).argsort().tolist()[:2]) == {0, 1}


@pytest.mark.parametrize("name", get_args(ImpactName))
def test_every_estimator_scores_every_token(make_vit: Callable[..., Any], name: str) -> None:
    state = half_slimmed(make_vit)
    scores = make_impact(name, seed=1).scores(state, 2)
    assert scores.shape == (17,)
    assert bool(torch.isfinite(scores).all())
    assert len(set(scores.tolist())) > 2
    again = make_impact(name, seed=1).scores(state, 2)
    assert torch.equal(scores, again)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(InputError, match="--impact magic: not one of cover, joint, path"):
        make_impact("magic")


def test_scores_do_not_depend_on_the_batch_size_or_the_cache(make_vit: Callable[..., Any]) -> None:
    state = half_slimmed(make_vit)
    whole = make_impact("path").scores(state, 2)
    state.batch_size, state.cache_bytes, state._cache = 3, 0, None
    assert torch.allclose(whole, make_impact("path").scores(state, 2), rtol=1e-4)
    assert state._cache is None
