"""Counts and positions: budgets are met, sets nest, ranks are what their names say."""

from __future__ import annotations

from functools import partial
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.counts import (
    TRIED,
    Shape,
    best_shape,
    counts_by_image,
    counts_for_budget,
    counts_for_scoring,
    counts_of_shape,
    reachable_shapes,
)
from slimdeploy.errors import InputError
from slimdeploy.macs import dense_macs, mac_reduction
from slimdeploy.positions import Positions, keep_by_rank, rank_positions
from slimdeploy.schedule import token_problem
from tests.conftest import geometry
from tests.test_macs import deit

shapes = st.sampled_from(get_args(Shape))


@given(shapes, st.floats(0, 0.6), st.sampled_from([1, 8, 16]))
def test_counts_save_what_was_asked_and_never_rise(
    shape: Shape, wanted: float, multiple_of: int
) -> None:
    counts = counts_for_budget(deit(192), wanted, shape, multiple_of)
    assert mac_reduction(deit(192), counts) >= wanted
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 1
    assert all(count % multiple_of == 0 or count == 197 for count in counts[:-1])


@given(shapes, st.floats(0.1, 0.6))
def test_counts_are_the_mildest(shape: Shape, wanted: float) -> None:
    saved = mac_reduction(deit(192), counts_for_budget(deit(192), wanted, shape))
    assert saved < wanted + 0.02


def test_the_counts_of_the_reference_table() -> None:
    counts = counts_for_budget(deit(192), 0.462, "geometric")
    expected = [179, 162, 147, 134, 122, 110, 100, 91, 83, 75, 68, 1]
    assert np.abs(np.subtract(counts, expected)).max() <= 1


@pytest.mark.parametrize("wanted", [-0.1, 1.0, 1.7, 0.99])
def test_a_budget_out_of_reach_is_refused(wanted: float) -> None:
    with pytest.raises(InputError, match=f"--mac-reduction {wanted}: "):
        counts_for_budget(deit(192), wanted, "linear")


def test_scoring_the_patches_is_within_the_budget() -> None:
    model = deit(192)
    counts = counts_for_scoring(model, 0.46, "geometric")
    scoring = (model.depth - 1) * model.tokens * model.width / dense_macs(model).total
    assert 0.46 + scoring <= mac_reduction(model, counts) < 0.48
    most = mac_reduction(model, counts_of_shape(model, "step", 0.0, 1))
    assert len(counts_for_budget(model, most, "step")) == model.depth
    with pytest.raises(
        InputError, match=rf"--mac-reduction {most}: step counts, less \S+ for scoring"
    ):
        counts_for_scoring(model, most, "step")


@pytest.mark.parametrize("multiple_of", [0, -8])
def test_a_senseless_multiple_is_refused(multiple_of: int) -> None:
    with pytest.raises(InputError, match=f"--multiple-of {multiple_of}: must be at least 1"):
        counts_for_budget(deit(192), 0.4, multiple_of=multiple_of)


@given(st.sampled_from(get_args(Positions)), st.floats(0.1, 0.6), st.integers(0, 99))
def test_kept_positions_are_a_legal_schedule(
    positions: Positions, wanted: float, seed: int
) -> None:
    model = deit(192)
    rank = rank_positions(model, positions, seed)
    keep = keep_by_rank(model, rank, counts_for_budget(model, wanted))
    assert token_problem(model, keep) is None


def test_centre_keeps_the_middle_and_grid_the_spread() -> None:
    model = geometry()
    centre = keep_by_rank(model, rank_positions(model, "centre"), [5] * 4)[0]
    assert centre == (0, 6, 7, 10, 11)
    grid = keep_by_rank(model, rank_positions(model, "grid"), [5] * 4)[0]
    corners = {1, 4, 13, 16}
    assert len(corners & set(grid)) >= 3


def test_random_positions_follow_the_seed() -> None:
    first, same, other = (rank_positions(geometry(), "random", seed) for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_head_that_pools_keeps_some_of_what_it_pools_over() -> None:
    pooled = geometry(prefix=("register",), head_reads=(), head_pools=tuple(range(1, 17)))
    counts = counts_for_budget(pooled, 0.4)
    assert 1 <= counts[-1] < counts[-2]
    keep = keep_by_rank(pooled, rank_positions(pooled, "grid"), counts)
    assert [len(ids) for ids in keep] == counts
    assert 0 not in keep[-1]  # a register that no one reads has no use in the last layer
    assert token_problem(pooled, keep, pool_kept=True) is None
    problem = token_problem(pooled, keep)
    assert problem is not None
    assert problem.startswith("layers[0].keep: token ")
    assert "the head pools over it; pool_kept lets it" in problem


def test_by_image_a_layer_of_registers_without_patches_is_refused() -> None:
    """Class and four registers: the last layer keeps one of the five, such a layer all."""
    prefix = ("class", *["register"] * 4)
    model = deit(192).model_copy(update={"prefix": prefix})
    with pytest.raises(InputError, match=r"--shape linear: layer \d+ would keep no patch"):
        counts_by_image("predictor", model, 0.55, "linear")
    assert min(counts_by_image("merge", model, 0.55, "geometric")[:-1]) > 5


def test_a_model_of_one_block_has_counts_of_every_shape() -> None:
    model = deit(192).model_copy(update={"depth": 1})
    assert all(counts_of_shape(model, shape, 0.5) == [1] for shape in get_args(Shape))


def test_auto_leaves_out_shapes_that_cannot_be_had() -> None:
    """At 70 % a steep fall would have to merge more than pairs; at 99 % nothing is left to try."""

    def counts(wanted: float, shape: Shape) -> list[int]:
        return counts_by_image("merge", deit(192), wanted, shape)

    assert reachable_shapes(partial(counts, 0.46)) == list(TRIED)
    assert reachable_shapes(partial(counts, 0.7)) == ["geometric", "early"]
    with pytest.raises(InputError, match=r"--mac-reduction 0.99: geometric counts"):
        reachable_shapes(partial(counts, 0.99))
    told: list[str] = []
    errors = {"geometric": 2.0, "early": 1.0}
    assert best_shape(partial(counts, 0.7), errors.__getitem__, told.append) == "early"
    assert told[2] == "earlier counts: out of reach"
    assert len(told) == len(TRIED)


def test_the_shape_that_would_spread_merging_is_named_if_there_is_one() -> None:
    with pytest.raises(InputError, match=r"0.7, earlier counts: .*; --shape geometric spreads"):
        counts_by_image("merge", deit(192), 0.7, "earlier")
    with pytest.raises(InputError, match=r"no shape can: save less"):
        counts_by_image("merge", deit(192), 0.9, "geometric")
