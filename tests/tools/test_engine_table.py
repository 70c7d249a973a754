"""The table of engines is the recorded run, and says what the project claims of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.engine_table import MODELS, VARIANTS, markdown, measured

TABLE = Path(__file__).parent.parent.parent / "docs" / "bench" / "engines"


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(TABLE.with_suffix(".json").read_text())
    return found


def test_the_table_is_the_recorded_run() -> None:
    assert markdown(recorded()) == TABLE.with_suffix(".md").read_text()
    assert {row["model"] for row in recorded()["rows"]} == set(MODELS)


def test_every_engine_computes_the_tokens_of_its_schedule() -> None:
    assert all(row["tokens_as_planned"] for row in recorded()["rows"])


def test_attention_is_fused_in_every_block_below_float32() -> None:
    rows = [row for row in recorded()["rows"] if row["precision"] != "fp32"]
    assert {row["fused_attentions"] for row in rows} == {12} == {row["blocks"] for row in rows}


def test_no_more_than_the_row_that_the_head_reads_is_selected_alone() -> None:
    """But for one-hot selections, which are products and stay such."""
    rows = [row for row in recorded()["rows"] if row["form"] != "one-hot"]
    assert max(row["selections_alone"] for row in rows) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_whole_models_build_as_recorded(model: str, variant: tuple[str, str, bool]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    row = measured(model, *variant)
    rows = {(r["model"], r["form"], r["precision"], r["dynamic"]): r for r in recorded()["rows"]}
    old = rows.get(row.key)
    if old is None:
        pytest.skip("no such row is recorded: run python -m tools.engine_table")
    same = ("blocks", "fused_attentions", "tokens_per_block", "tokens_as_planned")
    assert {name: getattr(row, name) for name in same} == {name: old[name] for name in same}
