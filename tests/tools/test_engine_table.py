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


def test_no_more_than_one_selection_stands_alone() -> None:
    """But for one-hot selections, which are products and stay such."""
    rows = [row for row in recorded()["rows"] if row["form"] != "one-hot"]
    assert max(row["selections_alone"] for row in rows) <= 1


def test_the_page_says_where_a_selection_stands_alone() -> None:
    text = TABLE.with_suffix(".md").read_text()
    assert (
        "Not every selection is fused: 15 of the 24 engines that drop tokens by gather, slice or "
        "slice-concat have a kernel that only selects: all in fp16 "
        "(batch 1 to 8), fp32 (batch 1 to 8), bf16 (batch 1 to 8); fp16 (batch 1), int8 "
        "(batch 1 to 8), fp8 (batch 1 to 8) go without. Which block it belongs to is not recorded."
    ) in text
    lone = {(r["form"], r["precision"], r["dynamic"]): r["selections_alone"] > 0
            for r in recorded()["rows"]}  # fmt: skip
    for (form, precision, dynamic), alone in lone.items():
        open_batch = dynamic and precision in ("fp16", "fp32", "bf16")
        assert alone is (form == "one-hot" or (form != "dense" and open_batch))


def test_a_record_without_lone_selections_says_so() -> None:
    rows = [{**row, "selections_alone": 0} for row in recorded()["rows"]]
    text = markdown({**recorded(), "rows": rows})
    assert "Each selection by gather, slice or slice-concat is fused" in text
    assert "Not every selection" not in text


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
