"""The page of accuracy says what its records say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools.accuracy_page import defaults, page
from tools.accuracy_picture import _lines, draw
from tools.accuracy_rows import hits
from tools.accuracy_verdict import verdict
from tools.hits import packed

RECORDS = Path(__file__).parents[2] / "docs/bench/accuracy"
DENSE = np.arange(100) < 90


def judged(wrong: int) -> dict[str, Any]:
    """Wrong where the dense model is, and on the first so many images."""
    right = DENSE & (np.arange(100) >= wrong)
    about = {"n": 100, "top1": float(right.mean()), "agreement": 0.95, "right": packed(right)}
    return {**about, "agrees": packed(np.arange(100) >= wrong // 2)}


def row(impact: str, seed: int, wrong: int, **more: Any) -> dict[str, Any]:
    key = {"mac_reduction": 0.46, "impact": impact, "shape": "auto", "seed": seed, "images": 192}
    return {**key, "cpu_seconds": 10.0, "refit": judged(wrong), **more}


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    record = {"study": "A study", "computed_in": "float32", "dense": {"100": packed(DENSE)}}
    text = page({"small": {**record, "rows": rows}})
    assert "dense top-1 90.00 % on 100 images" in text
    assert "### 46% fewer MACs" in text
    rows = text.partition("### 46%")[2].splitlines()
    return [line for line in rows if line.startswith("| ") and "impact" not in line]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_bits_are_read_as_they_were_packed() -> None:
    right = np.random.default_rng(0).random(525) < 0.5
    assert np.array_equal(hits(packed(right), 525), right)


def test_seeds_are_averaged_and_the_best_comes_first() -> None:
    tuned = {"finetuned": judged(1), "finetune_cpu_seconds": 300.4}
    rows = [row("grid", 0, 10), row("cover", 0, 2, **tuned), row("cover", 1, 4)]
    best, other = map(cells, lines_of(rows))
    assert best[:6] == ["cover", "auto", "192", "0, 1", "100", "-"]
    assert best[6].startswith("87.00 % (-3.00; ")
    assert best[7].startswith("89.00 % (-1.00; ")
    assert best[7].endswith("; 1 of 2 seeds)")
    assert best[8:] == ["-", "-", "-", "95.00 %", "10", "300"]
    assert other[6].startswith("80.00 % (-10.00; ")


def test_the_interval_is_of_images_not_of_seeds() -> None:
    wide, narrow = ([row("cover", s, wrong) for s, wrong in enumerate(w)] for w in ((5,), (5, 5)))
    assert cells(lines_of(wide)[0])[6] == cells(lines_of(narrow)[0])[6]


def test_an_estimator_is_compared_with_the_default_seed_by_seed() -> None:
    rows = [row("cover", 0, 2, finetuned=judged(1)), row("grid", 1, 90), row("path", 1, 3)]
    rows.append(row("grid", 0, 5, finetuned=judged(3)))
    by_name = {cells(line)[0]: cells(line) for line in lines_of(rows)}
    assert by_name["grid"][9].startswith("-3.00; ")
    assert by_name["grid"][10].startswith("-2.00; ")
    assert by_name["path"][9] == "-"
    assert by_name["cover"][9] == "-"


def test_the_default_is_told_where_it_was_judged_on_all_images() -> None:
    some = row("cover", 1, 3) | {"shape": "geometric"}
    some["refit"] = some["refit"] | {"n": 50, "right": packed(DENSE[:50])}
    rows = [row(name, 0, 2) | {"shape": "geometric"} for name in ("cover", "grid")]
    rows[0] |= {"finetuned_longer": judged(1), "finetune_cpu_seconds_longer": 1234.5}
    dense = {"100": packed(DENSE), "50": packed(DENSE[:50])}
    record = {"study": "S", "computed_in": "float32", "dense": dense, "rows": [*rows, some]}
    line = defaults({"small": record})[-2]
    assert cells(line)[:5] == ["small", "46%", "192", "0", "-"]
    assert cells(line)[5].startswith("88.00 % (-2.00; ")
    assert cells(line)[6] == "-"
    assert cells(line)[7].startswith("89.00 % (-1.00; ")
    assert cells(line)[8] == "1234"
    assert len(defaults({"small": record})) == len(defaults({})) + 1


def test_a_peer_needs_no_refit() -> None:
    peer = row("tome", 0, 0)
    peer["dense_weights"] = peer.pop("refit")
    assert cells(lines_of([peer])[0])[:3] == ["tome", "-", "-"]
    assert cells(lines_of([peer])[0])[4:7] == ["100", "90.00 % (+0.00; +0.00 to +0.00)", "-"]


def geometric(*args: Any, **more: Any) -> dict[str, Any]:
    return row(*args, **{"shape": "geometric", **more})


def test_the_default_is_set_against_the_others_by_budget_and_stage() -> None:
    rows = [geometric("cover", seed, 2) for seed in (0, 1)]
    rows += [geometric("grid", 0, 30), geometric("grid", 1, 32), geometric("path", 0, 2)]
    rows += [geometric("random", 2, 9), geometric("tome", 0, 1)]
    others = [row("grid", 0, 90), geometric("grid", 0, 90, images=768)]
    others.append(geometric("centre", 0, 9, refit={**judged(9), "n": 96}))
    dense = {"100": packed(DENSE)}
    record = {"study": "S", "computed_in": "float32", "dense": dense, "rows": rows}
    for added in ([], others[:2]):
        text = page({"small": {**record, "rows": rows + added}})
        table, _, counted = text.partition("## `cover` against")[2].partition("\n\n- ")
        (line,) = [line for line in table.splitlines() if line.startswith("| small")]
        assert cells(line) == [
            "small", "46%", "refit", "-", "+0.00", "-", "-", "**-29.00**", "-", "-", "1 or 2"
        ]  # fmt: skip
        assert counted.startswith("refit: 2 compared, 1 in favour of `cover` (1 by an interval")
        assert ", 0 against it (0 so)." in counted
        agreement, _, by_image = counted.partition("### By agreement")[2].partition("### Per-image")
        right, same = [line for line in by_image.splitlines() if line.startswith("| small")]
        assert cells(right)[2:] == ["refit", "-", "-", "-", "+1.00", "1"]
        assert cells(same)[2:] == ["refit", "-", "-", "-", "+1.00", "1"]
        (line,) = [line for line in agreement.splitlines() if line.startswith("| small")]
        assert cells(line)[3:8] == ["-", "+0.00", "-", "-", "**-14.50**"]
    assert len(verdict({"small": {**record, "rows": rows + others[2:]}})) == len(
        verdict({"small": record})
    ), "judged on other images"


def test_a_picture_is_drawn_of_studies_with_gaps(tmp_path: Path) -> None:
    rows = [geometric("cover", seed, wrong) for seed, wrong in ((0, 2), (1, 50))]
    rows.append(geometric("grid", 0, 9))
    record = {"study": "A study", "dense": {"100": packed(DENSE)}, "rows": rows}
    drawn = {name: float(gain.mean()) for (name, _), gain in _lines(record, "refit").items()}
    assert drawn == pytest.approx({"cover": -0.02, "grid": -0.09}), "the seed that both have"
    draw({"one": record, "empty": {**record, "rows": []}}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_committed_page_is_that_of_the_committed_records() -> None:
    records = {path.stem: json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))}
    assert RECORDS.with_suffix(".md").read_text() == page(records), "run accuracy_table render"
