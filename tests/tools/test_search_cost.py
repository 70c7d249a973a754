"""The benchmark of the search measures the models it names, and goes on where it was killed."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest
import timm
import torch

from tools import search_cost


@pytest.mark.parametrize("model", sorted({case.model for case in search_cost.CASES}))
def test_models_have_the_tokens_and_blocks_of_their_rows(model: str) -> None:
    with torch.device("meta"):
        made = timm.create_model(model)
    cases = [case for case in search_cost.CASES if case.model == model]
    tokens = made.patch_embed.num_patches + made.num_prefix_tokens
    assert {(case.tokens, case.depth) for case in cases} == {(tokens, len(made.blocks))}
    assert made.embed_dim == 384


def test_rows_are_told_apart() -> None:
    names = [case.name for case in search_cost.CASES]
    assert len(set(names)) == len(names)


def test_a_process_is_measured() -> None:
    row = search_cost.run([sys.executable, "-c", "x = bytearray(300 << 20); sum(range(10**6))"])
    assert row.cpu > 0.01
    assert row.wall > 0.01
    # Until it starts, a process counts what its parent holds: here all that tests have imported.
    parent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    assert 300 << 20 < row.peak < max(300 << 23, 2 * parent)


def test_measured_cases_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[list[str]] = []

    def run(words: list[str]) -> search_cost.Row:
        measured.append(words)
        return search_cost.Row(1.0, 2.0, 3 << 30, 0.5)

    monkeypatch.setattr(search_cost, "run", run)
    monkeypatch.setattr(search_cost, "BUILD", tmp_path)
    monkeypatch.setattr(search_cost, "random_weights", lambda model: tmp_path / model)
    monkeypatch.setattr(search_cost, "draw_images", lambda count: None)
    for most in (1, 1):
        search_cost.measure(output=tmp_path, most=most)
    assert len(measured) == 2
    assert measured[0] != measured[1]
    rows = json.loads((tmp_path / "search.json").read_text())["rows"]
    assert list(rows) == [case.name for case in search_cost.CASES[:2]]
    assert (
        "| joint | 256 / 256 | 197 | 12 | geometric | none | 2 | 1 | 0.5 | 3.00 |"
        in (tmp_path / "search.md").read_text()
    )
