"""Scores and choices by ONNX Runtime are those of the PyTorch path."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.errors import InputError
from slimdeploy.forward.choices import require_forward
from slimdeploy.forward.choose import choose_tokens, top_up
from slimdeploy.forward.cut import Cutter
from slimdeploy.forward.impact import scores
from slimdeploy.forward.views import Views
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.choices import ImpactName
from slimdeploy.slim.impact import make_impact
from slimdeploy.slim.search import SearchOptions, search
from slimdeploy.store import Store, open_store
from tests.forward.models import Case, relative


def views_of(case: Case, store: Store, keep: dict[int, list[int]] | None = None) -> Views:
    geometry, cutter = case.geometry, Cutter(case.dense)
    return Views(geometry, cutter, case.blocks, case.feed, store, dict(keep or {}))


CASES = [
    ("plain", "dynamo18"),
    ("layerscale", "dynamo23"),  # an Attention operator
    ("distilled", "script17-fused"),
]


@pytest.mark.parametrize(("kind", "exporter"), CASES)
@pytest.mark.parametrize("impact", ["path", "attention", "class-attention"])
def test_scores_are_those_of_torch(kind: str, exporter: str, impact: Any) -> None:
    case = Case(kind, exporter)
    state = Calibration(case.torch, case.geometry, case.tensor, batch_size=8)
    with open_store() as store:
        free = store.free
        views = views_of(case, store)
        for layer in (2, 1):
            state.keep[layer + 1] = views.keep[layer + 1] = case.keep[layer]
            found = scores(views, impact, layer, seed=0)
            wanted = make_impact(impact).scores(state, layer).numpy()
            assert relative(found, wanted) < 1e-5
        store.release(*views.streams.values())
        assert store.free == free


@pytest.mark.parametrize("kind", ["plain", "merged_heads"])
@pytest.mark.parametrize("impact", ["path", "attention", "class-attention", "cover"])
def test_a_fixed_batch_changes_nothing(kind: str, impact: Any) -> None:
    found = []
    for dynamic_batch in (True, False):
        case = Case(kind, "dynamo18", dynamic_batch=dynamic_batch)
        with open_store() as store:
            views = views_of(case, store, {3: case.keep[2]})
            found.append(scores(views, impact, 2, seed=0))
    assert relative(*found) < 1e-5


@pytest.mark.parametrize("impact", [name for name in get_args(ImpactName) if name != "joint"])
def test_choices_are_those_of_torch(impact: Any) -> None:
    case = Case("plain", "dynamo18")
    options = SearchOptions(counts=[12, 5, 1], reconstruct="none")
    state = Calibration(case.torch, case.geometry, case.tensor, batch_size=8)
    wanted = [layer.keep for layer in search(state, make_impact(impact, 1), options)]
    with open_store() as store:
        views = views_of(case, store)
        found = [layer.keep for layer in choose_tokens(views, impact, [12, 5, 1], seed=1)]
    assert found == wanted
    assert [len(keep) for keep in found] == [12, 5, 1]


def test_streams_on_disk_change_nothing() -> None:
    case = Case("plain", "dynamo18")
    found = []
    for budget in (0, 1 << 29):
        with open_store(budget) as store:
            layers = choose_tokens(views_of(case, store), "path", [12, 5, 1], seed=0)
            assert (store.on_disk > 0) == (budget == 0)
        found.append([layer.scores for layer in layers])
    assert found[0] == found[1]


@pytest.mark.parametrize("impact", ["path", "attention", "grid", "cover"])
def test_a_pooling_head_keeps_the_best_of_what_it_pools_over(impact: Any) -> None:
    case = Case("average", "dynamo18")
    geometry = case.geometry.model_copy(
        update={"head_reads": (), "head_pools": tuple(range(case.geometry.tokens))}
    )
    with open_store() as store:
        views = Views(geometry, Cutter(case.dense), case.blocks, case.feed, store)
        layers = choose_tokens(views, impact, [12, 8, 4], seed=0)
        last = scores(views, impact, 3, seed=0)
        assert set(layers[2].keep) == set(np.argsort(-last)[:4].tolist())
        with pytest.raises(InputError, match="pools over its tokens, none is the class"):
            scores(views, "class-attention", 2, seed=0)


def test_what_needs_gradients_is_refused() -> None:
    with pytest.raises(InputError, match=r"--impact joint: needs --model; with --onnx choose grid"):
        require_forward("joint")


@given(st.lists(st.floats(-9, 9), min_size=3, max_size=12), st.data())
def test_topping_up(score: list[float], data: st.DataObject) -> None:
    floor = data.draw(st.lists(st.integers(0, len(score) - 1), max_size=4))
    count = data.draw(st.integers(1, len(score)))
    kept = top_up(np.array(score), floor, count)
    assert set(floor) <= set(kept)
    assert len(kept) == max(count, len(set(floor))) == len(set(kept))
    left = set(range(len(score))) - set(kept)
    chosen = set(kept) - set(floor)
    assert all(score[i] >= score[j] for i in chosen for j in left)
