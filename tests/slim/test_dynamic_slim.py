"""Per-image choice: the model against one that masks keys, its scores, its refit, its schedule."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.counts import TRIED
from slimdeploy.dynamic import Dynamic, Scorer, choosing_layers
from slimdeploy.errors import InputError
from slimdeploy.macs import dense_macs, model_macs, schedule_macs
from slimdeploy.schedule import KeepSchedule, Provenance
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.dynamic import (
    DynamicRequest,
    DynamicVit,
    choose_rows,
    dynamic_model,
    dynamic_steps,
    fit_predictor,
    patch_scores,
    slim_of,
)
from slimdeploy.slim.dynamic.predictor import _pairs
from slimdeploy.slim.dynamic.refit import refit_dynamic
from slimdeploy.slim.dynamic.scores import keys
from slimdeploy.slim.model import SlimVit, attention_map, embed, queries_keys_values
from slimdeploy.slim.timm_models import describe
from tests.conftest import schedule
from tests.slim.test_refit import pictures
from tests.slim.test_slim_model import VARIANTS, masked_logits

COUNTS = [17, 12, 6, 1]


def predictor(model: Any, counts: list[int], seed: int = 0) -> Dynamic:
    """Random weights: what they choose is as good as anything for a test."""
    generator = torch.Generator().manual_seed(seed)
    tokens, prefix = 16 + model.num_prefix_tokens, model.num_prefix_tokens
    rows = [
        tuple(torch.randn(48, generator=generator).tolist()) if chosen else None
        for chosen in choosing_layers(counts, tokens, prefix)
    ]
    return Dynamic(scorer="predictor", weights=tuple(rows))


def dynamic(model: Any, scorer: Scorer, extra: int = 0) -> DynamicVit:
    counts = [count + extra for count in COUNTS[:-1]] + [2 if hasattr(model, "head_dist") else 1]
    chosen = predictor(model, counts) if scorer == "predictor" else Dynamic(scorer=scorer)
    return DynamicVit(model, counts, chosen, range(counts[-1])).eval()


@pytest.mark.parametrize("scorer", get_args(Scorer))
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_it_is_the_dense_model_with_the_dropped_keys_masked(
    make_vit: Callable[..., Any], variant: dict, scorer: Scorer
) -> None:
    """Image by image, for every image drops other patches than the next."""
    model, images = make_vit(**variant), pictures(6, 3)
    slim = dynamic(model, scorer, model.num_prefix_tokens - 1)
    with torch.no_grad():
        found = slim(images)
        choices = [ids.sort(1).values for ids in slim.choices(images)]
        for index in range(len(images)):
            keep = [ids[index].tolist() for ids in choices]
            wanted = masked_logits(model, images[index : index + 1], keep)
            assert (found[index] - wanted[0]).abs().max() <= 2e-5 * wanted.abs().max()
    assert len({tuple(ids.tolist()) for ids in choices[1]}) > 1


def test_choices_are_nested_and_hold_every_prefix_token(make_vit: Callable[..., Any]) -> None:
    model = make_vit(reg_tokens=2)
    slim, before = dynamic(model, "token-norm", 2), [set(range(19))] * 5
    for count, ids in zip(slim.counts[:-1], slim.choices(pictures(5, 0)), strict=False):
        assert ids.shape == (5, count)
        for index, row in enumerate(ids.tolist()):
            assert set(row) <= before[index]
            assert row[:3] == [0, 1, 2]
        before = [set(row) for row in ids.tolist()]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.data())
def test_the_best_scores_stay_and_of_equals_the_first(scores: list[int], data: Any) -> None:
    count, prefix = data.draw(st.integers(0, len(scores))), data.draw(st.integers(0, 2))
    rows = choose_rows(torch.tensor([scores]).float(), prefix + count, prefix)[0].tolist()
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]
    assert rows == [*range(prefix), *(prefix + i for i in order)]


def test_keys_are_those_of_the_attention(make_vit: Callable[..., Any]) -> None:
    model = make_vit(qk_norm=True)
    block, x = model.blocks[1], embed(model, pictures(2, 0))
    _, wanted, _ = queries_keys_values(block.attn, block.norm1(x), None)
    assert torch.allclose(keys(block, x), wanted, atol=1e-6)


def test_the_predictor_is_the_regression_towards_later_attention(
    make_vit: Callable[..., Any],
) -> None:
    """Its scores correlate with the target as no other direction does."""
    model, images = make_vit(), pictures(48, 0)
    state = Calibration(model, describe(model, "small"), images, batch_size=16)
    weights = fit_predictor(state, COUNTS)
    assert [w is None for w in weights] == [True, False, False, True]
    x, paid = embed(model, images), []
    for block in model.blocks:
        with torch.no_grad():
            paid.append(attention_map(block, x, torch.tensor([0])).mean((1, 2))[:, 1:])
            x = block(x)
    with torch.no_grad():
        entering, target = _pairs(state, images, 1)[2]
    assert torch.allclose(target, paid[3].double().log(), atol=1e-4)

    def correlation(weight: torch.Tensor) -> float:
        scores = patch_scores("predictor", model.blocks[2], entering, 0, weight).double()
        pair = torch.stack([(t - t.mean(1, keepdim=True)).flatten() for t in (scores, target)])
        return float(torch.corrcoef(pair)[0, 1])

    assert weights[2] is not None
    best = correlation(weights[2])
    generator = torch.Generator().manual_seed(0)
    others = [correlation(torch.randn(48, generator=generator)) for _ in range(20)]
    assert best > 0.5
    assert best > max(others)


@pytest.mark.parametrize("scorer", get_args(Scorer))
def test_the_refit_brings_unseen_images_closer(
    make_vit: Callable[..., Any], scorer: Scorer
) -> None:
    dense, unseen = make_vit(), pictures(32, 1)
    before = copy.deepcopy(dense.state_dict())
    made = dynamic_model(
        dense, describe(dense, "small"), pictures(64, 0), DynamicRequest(scorer, 0.4, "geometric")
    )
    counts = [len(layer.keep) for layer in made.layers]

    def error(weights: Any) -> float:
        slim = DynamicVit(weights, counts, made.dynamic).eval()
        with torch.no_grad():
            wanted = dense.forward_features(unseen)[:, 0]
            found = slim.forward_features(unseen)[:, 0]
        return float((found - wanted).square().sum() / wanted.square().sum())

    assert error(made.model) < 0.7 * error(dense)
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


def test_layers_say_how_often_a_patch_is_kept(make_vit: Callable[..., Any]) -> None:
    model = make_vit()
    request = DynamicRequest("token-norm", 0.4, "geometric", refit=None)
    made = dynamic_model(model, describe(model, "small"), pictures(16, 0), request)
    assert made.model is None
    for layer in made.layers:
        assert layer.scores is not None
        assert sum(layer.scores) == pytest.approx(len(layer.keep))
        assert layer.scores[0] == 1
        assert max(layer.scores) <= 1
    assert any(0 < share < 1 for share in made.layers[1].scores or ())


def test_the_budget_holds_with_the_scorer_in_it(make_vit: Callable[..., Any]) -> None:
    model = make_vit()
    geometry = describe(model, "small")
    made = dynamic_model(
        model, geometry, pictures(16, 0), DynamicRequest("predictor", 0.4, "geometric", refit=None)
    )
    sched = KeepSchedule(
        model=geometry,
        layers=tuple(made.layers),
        dynamic=made.dynamic,
        provenance=Provenance(slimdeploy="test"),
    )
    macs = schedule_macs(sched)
    assert 1 - macs.total / dense_macs(geometry).total >= 0.4
    without = model_macs(geometry, sched.counts).total
    keyed = [17, *sched.counts[:-1]]
    chosen = choosing_layers(sched.counts, 17, 1)
    assert macs.total - without == sum(k * 48 for k, c in zip(keyed, chosen, strict=True) if c)


def test_of_the_shapes_the_closest_is_taken(make_vit: Callable[..., Any]) -> None:
    model, lines = make_vit(), []
    geometry, request = describe(model, "small"), DynamicRequest("predictor", 0.4, "auto")
    made = dynamic_model(model, geometry, pictures(16, 0), request, progress=lines.append)
    errors = {line.split()[0]: float(line.split()[-1]) for line in lines if "held-out" in line}
    assert set(errors) == set(TRIED)
    assert made.shape == min(TRIED, key=errors.__getitem__)
    assert len(lines) == dynamic_steps(geometry, request)
    wanted = request.counts(geometry, made.shape)
    assert [len(layer.keep) for layer in made.layers] == wanted


def keep_of(counts: list[int]) -> list[list[int]]:
    return [list(range(count)) for count in counts]


def test_a_schedule_without_it_is_what_it_was(tmp_path: Path) -> None:
    made = schedule(keep_of(COUNTS))
    made.write(tmp_path / "sched.json")
    assert "dynamic" not in json.loads((tmp_path / "sched.json").read_text())
    other = made.model_copy(update={"dynamic": Dynamic(scorer="key-norm")})
    assert made.digest != other.digest
    other.write(tmp_path / "sched.json")
    assert KeepSchedule.read(tmp_path / "sched.json") == other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scorer": "key-norm", "weights": [None] * 4}, "dynamic.weights: go with the predictor"),
        ({"scorer": "predictor"}, "dynamic.weights: 0 rows for 4 layers"),
        ({"scorer": "predictor", "weights": [None] * 4}, r"dynamic.weights\[1\]: missing"),
        (
            {"scorer": "predictor", "weights": [None, [1.0], [1.0], None]},
            r"dynamic.weights\[1\]: 1 numbers for 48 channels",
        ),
        (
            {"scorer": "predictor", "weights": [[0.0] * 48] * 3 + [None]},
            r"dynamic.weights\[0\]: this layer chooses none",
        ),
        ({"scorer": "softmax"}, "dynamic.scorer: "),
    ],
)
def test_a_bad_dynamic_part_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "sched.json"
    schedule(keep_of(COUNTS)).write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "dynamic": change}))
    with pytest.raises(InputError, match=message):
        KeepSchedule.read(path)


def test_slim_of_makes_what_the_schedule_says(make_vit: Callable[..., Any]) -> None:
    model, made = make_vit(), schedule(keep_of(COUNTS))
    assert type(slim_of(model, made)) is SlimVit
    chosen = made.model_copy(update={"dynamic": Dynamic(scorer="key-norm")})
    slim = slim_of(model, chosen)
    assert isinstance(slim, DynamicVit)
    assert slim.counts == COUNTS


def test_activations_on_disk_and_other_batches_give_the_same_weights(
    make_vit: Callable[..., Any],
) -> None:
    images, found = pictures(21, 0), []
    for batch_size, memory in ((8, 1 << 30), (8, 0), (21, 1 << 30)):
        model = make_vit()
        state = Calibration(model, describe(model, "small"), images, batch_size, memory)
        slim = dynamic(copy.deepcopy(model), "predictor")
        refit_dynamic(state, slim)
        found.append(slim.dense.state_dict())
    in_memory, on_disk, in_one = found
    for name, weight in in_memory.items():
        assert torch.equal(weight, on_disk[name]), name
        assert torch.allclose(weight, in_one[name], atol=1e-3), name
