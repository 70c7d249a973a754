"""Choosing tokens that the others are predicted from: against least squares, set by set."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from slimdeploy.cover_ranks import cover_ranks
from slimdeploy.forward.choose import choose_tokens
from slimdeploy.forward.cover import token_gram
from slimdeploy.forward.cut import Cutter
from slimdeploy.forward.views import Views
from slimdeploy.store import open_store
from tests.forward.models import Case, relative

Floats = NDArray[np.float64]


def error(x: Floats, weights: Floats, kept: list[int]) -> float:
    """What least squares leave of all columns of x, from the kept ones."""
    if not kept:
        return float((weights * np.square(x).sum(0)).sum())
    solved = np.linalg.lstsq(x[:, kept], x, rcond=None)[0]
    return float((weights * np.square(x - x[:, kept] @ solved).sum(0)).sum())


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_each_step_is_the_best_one(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(30, 8)) @ generator.normal(size=(8, 8))
    weights = generator.uniform(0.1, 2, 8)
    given_ids = sorted(generator.permutation(8)[:count].tolist())
    ranks = cover_ranks(x.T @ x, weights, given_ids)
    order = np.argsort(-ranks).tolist()
    assert sorted(ranks.tolist()) == list(range(1, 9))
    assert order[:count] == given_ids
    for place in range(count, 7):
        chosen = order[:place]
        errors = {i: error(x, weights, [*chosen, i]) for i in order[place:]}
        assert errors[order[place]] <= min(errors.values()) * (1 + 1e-6) + 1e-6


def test_of_two_tokens_that_say_the_same_one_is_enough() -> None:
    x = np.random.default_rng(0).normal(size=(50, 4))
    x[:, 3] = 2 * x[:, 0] + 1e-7
    order = np.argsort(-cover_ranks(x.T @ x, np.ones(4), []))
    assert set(order[:3].tolist()) in ({0, 1, 2}, {1, 2, 3})


def test_tokens_that_never_change_come_last() -> None:
    x = np.random.default_rng(0).normal(size=(50, 4))
    x[:, 1] = 0
    ranks = cover_ranks(x.T @ x, np.array([1.0, 9.0, 1.0, 1.0]), [])
    assert ranks.argmin() == 1


def test_the_gram_matrix_and_the_choice_on_a_graph() -> None:
    case = Case("plain", "dynamo23")
    with open_store() as store:
        views = Views(case.geometry, Cutter(case.dense), case.blocks, case.feed, store)
        x = views.stream(1).astype(np.float64)
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        x -= x.mean(0)
        wanted = np.einsum("bnd,bmd->nm", x, x) / len(x)
        assert relative(token_gram(views, 1), wanted) < 1e-5
        layers = choose_tokens(views, "cover", [9, 5, 1], seed=0)
    assert [len(layer.keep) for layer in layers] == [9, 5, 1]
    assert set(layers[1].keep) < set(layers[0].keep)
