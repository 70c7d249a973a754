"""Rows of the table of accuracy, made whole: searched, refitted, fine-tuned, judged, kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slimdeploy.macs import dense_macs, schedule_macs
from slimdeploy.schedule import KeepSchedule
from slimdeploy.slim.dynamic.model import DynamicVit
from tools.accuracy_bench import WORK, Bench
from tools.accuracy_models import Estimator, Wanted, candidate
from tools.accuracy_studies import STUDIES, Study
from tools.accuracy_table import RECORDS, run
from tools.peers import EvitVit


@pytest.fixture
def study(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, photographs: Path
) -> Study:
    """A study of a small model, at work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    short = replace(STUDIES["elpv_vit_tiny"].finetune, epochs=1, max_steps=1, batch_size=4)
    small = Study("Small", "test_vit", checkpoint, photographs, 160, short)
    monkeypatch.setitem(STUDIES, "small", small)
    return small


def rows(impact: Estimator, **more: Any) -> list[dict[str, Any]]:
    row = {"mac_reduction": 0.4, "shape": "geometric", "images": 8, "amp_dtype": "float32"}
    run(study="small", impact=impact, **row, **more)  # type: ignore[arg-type]
    found: list[dict[str, Any]] = json.loads((RECORDS / "small_float32.json").read_text())["rows"]
    return found


def test_a_row_is_added_to_stage_by_stage(study: Study) -> None:
    (first,) = rows("cover", stages=["dense_weights"])
    (both,) = rows("cover", stages=["refit", "finetuned"], workers=0)
    assert {key: both[key] for key in first} == first, "not searched again"
    assert both["recipe"]["max_steps"] == 1
    assert both["recipe"]["amp_dtype"] == "float32", "trained in what it is judged in"
    assert all(both[stage]["n"] == 16 for stage in ("dense_weights", "refit", "finetuned"))


def test_those_that_choose_by_image_cost_no_more_than_asked(study: Study) -> None:
    bench = Bench("small", study, 16, "float32")
    dense = dense_macs(bench.geometry).total
    for name, kind in (("predictor", DynamicVit), ("evit", EvitVit)):
        wanted = Wanted(0.4, name, "geometric", 0, 8)  # type: ignore[arg-type]
        found = candidate(bench, wanted)
        assert type(found.make(bench.model)) is kind
        assert 0.4 <= found.about["macs_saved"] < 0.46
        if name == "predictor":
            schedule = KeepSchedule.read(WORK / "small" / f"{wanted.name}.json")
            assert found.about["macs_saved"] == 1 - schedule_macs(schedule).total / dense
            assert set(found.weights) == {"dense_weights", "refit"}


def test_a_dynamic_model_is_fine_tuned_for_its_own_choices(study: Study) -> None:
    (row,) = rows("predictor", stages=["dense_weights", "refit", "finetuned"], workers=0)
    assert row["finetune_cpu_seconds"] > 0
