"""The model that merges: against the dense one with its groups averaged, its refit, its counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slimdeploy.counts import counts_for_merging
from slimdeploy.dynamic import merge_problem
from slimdeploy.errors import InputError
from slimdeploy.macs import dense_macs, model_macs
from slimdeploy.measure import merges
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.dynamic import DynamicRequest, MergeVit, dynamic_model, dynamic_steps
from slimdeploy.slim.dynamic.merging import Groups, match, similarities
from slimdeploy.slim.dynamic.refit import refit_dynamic
from slimdeploy.slim.model import embed, slim_block
from slimdeploy.slim.timm_models import describe
from tests.slim.test_refit import pictures
from tests.slim.test_slim_model import VARIANTS

COUNTS = [13, 13, 8, 1]


def merging(model: Any, counts: list[int] | None = None) -> MergeVit:
    extra, read = model.num_prefix_tokens - 1, 2 if hasattr(model, "head_dist") else 1
    counts = counts or [*(count + extra for count in COUNTS[:-1]), read]
    return MergeVit(model, counts, range(read)).eval()


@torch.no_grad()
def averaged_logits(slim: MergeVit, images: Tensor) -> Tensor:
    """Of the dense model in which every token becomes its group's mean where a block begins."""
    rows = every = embed(slim.dense, images)
    groups = Groups.single(every)
    for index, block in enumerate(slim.dense.blocks):
        to = slim.moves(index, rows)
        if to is not None:
            after = groups.merged(to, slim.counts[index], slim.dense.num_prefix_tokens)
            means = after.means(every)
            every = means.gather(1, after.of[..., None].expand_as(every))
        rows, groups = slim.step(index, rows, groups, to)
        every = slim_block(block, every, None)
    return slim.forward_head(slim.dense.norm(every[:, : rows.shape[1]]))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_it_is_the_dense_model_with_its_groups_averaged(
    make_vit: Callable[..., Any], variant: dict
) -> None:
    slim, images = merging(make_vit(**variant)), pictures(6, 3)
    with torch.no_grad():
        found, wanted = slim(images), averaged_logits(slim, images)
    assert (found - wanted).abs().max() <= 2e-5 * wanted.abs().max()


def test_with_every_token_it_is_the_dense_model(make_vit: Callable[..., Any]) -> None:
    model, images = make_vit(), pictures(2, 0)
    with torch.no_grad():
        assert torch.equal(merging(model, [17, 17, 17, 17])(images), model(images))


def test_alike_patches_merge_and_nothing_is_lost(make_vit: Callable[..., Any]) -> None:
    """Without position embeddings all patches of a grey image are one token."""
    model = make_vit()
    model.pos_embed.data.zero_()
    images = torch.full((1, 3, *pictures(1, 0).shape[2:]), 0.3)
    with torch.no_grad():
        found, wanted = merging(model, [9, 5, 3, 1])(images), model(images)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@given(
    st.integers(0, 2), st.integers(2, 9), st.integers(0, 4), st.integers(0, 10_000)
)  # prefix, patches, merged, seed
def test_the_most_similar_pairs_merge(prefix: int, patches: int, gone: int, seed: int) -> None:
    first, second = (patches + 1) // 2, patches // 2
    gone = min(gone, first)
    generator = torch.Generator().manual_seed(seed)
    similar = torch.randint(0, 4, (2, first, second), generator=generator).float()
    count = prefix + patches - gone
    to = match(similar, gone, prefix)
    for image, row in enumerate(to.tolist()):
        assert sorted(set(row)) == list(range(count))
        assert row[:prefix] == list(range(prefix))
        behind = count - second
        assert row[prefix + 1 :: 2] == list(range(behind, count))
        best = similar[image].max(1).values.tolist()
        ranked = sorted(range(first), key=lambda i: (-best[i], i))
        assert [row[prefix + 2 * i] for i in ranked[gone:]] == list(range(prefix, behind))
        for i in ranked[:gone]:
            assert row[prefix + 2 * i] == behind + int(similar[image, i].argmax())


def test_torch_and_numpy_keep_the_same_groups(make_vit: Callable[..., Any]) -> None:
    x = embed(make_vit(), pictures(3, 1)).detach()
    groups, other = Groups.single(x), merges.Groups.single(3, 17)
    rows = x
    for count in (12, 7):
        to = match(similarities(rows, 1), rows.shape[1] - count, 1)
        groups, other = groups.merged(to, count, 1), other.merged(to.numpy(), count, 1)
        rows = groups.means(x)
        assert (groups.of.numpy() == other.of).all()
        assert (groups.ids.numpy() == other.ids).all()
        assert torch.allclose(rows, torch.from_numpy(other.means(x.detach().numpy())), atol=1e-6)
    assert (groups.size.sum(1) == 17).all()


def test_the_refit_brings_it_closer_to_the_dense_model(make_vit: Callable[..., Any]) -> None:
    model, images = make_vit(), pictures(64, 0)
    geometry = describe(model, "small")
    request = DynamicRequest("merge", 0.5, "geometric")
    lines: list[str] = []
    made = dynamic_model(model, geometry, images, request, progress=lines.append)
    assert len(lines) == dynamic_steps(geometry, request)
    assert [len(layer.keep) for layer in made.layers] == request.counts(geometry, "geometric")
    assert made.model is not None
    fresh = pictures(32, 9)
    counts = request.counts(geometry, "geometric")
    with torch.no_grad():
        wanted = model(fresh)
        before, after = (
            (MergeVit(dense, counts).eval()(fresh) - wanted).square().sum()
            for dense in (model, made.model)
        )
    assert after < 0.9 * before


def test_a_refit_to_itself_changes_nothing(make_vit: Callable[..., Any]) -> None:
    """With every token kept there is nothing missing."""
    import copy

    model, images = make_vit(), pictures(16, 0)
    slim = merging(copy.deepcopy(model), [17, 17, 17, 1])
    refit_dynamic(Calibration(model, describe(model, "small"), images), slim)
    for one, two in zip(model.parameters(), slim.dense.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-4)


def test_counts_hold_the_budget_and_every_layer_can_merge(make_vit: Callable[..., Any]) -> None:
    geometry = describe(make_vit(), "small")
    for wanted in (0.2, 0.3, 0.46):
        counts = counts_for_merging(geometry, wanted, "geometric")
        assert (
            1 - model_macs(geometry, counts, dynamic="merge").total / dense_macs(geometry).total
            >= wanted
        )
        assert merge_problem(counts, 17, 1) is None
    with pytest.raises(InputError, match="no more than every second patch"):
        counts_for_merging(geometry, 0.6, "even")


def test_merging_costs_what_its_products_cost(make_vit: Callable[..., Any]) -> None:
    """16 patches: 8 look among 8 others; 4 merge."""
    geometry = describe(make_vit(), "small")
    layer = model_macs(geometry, [13, 13, 13, 1], dynamic="merge").layers[0]
    assert (layer.queries, layer.keys) == (13, 13)
    assert layer.scorer == (8 * 8 + 8 * 4) * 48
    assert model_macs(geometry, [13, 13, 13, 1], dynamic="merge").layers[1].scorer == 0
