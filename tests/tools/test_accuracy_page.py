"""The page of accuracy says what its records say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tools.accuracy_page import hits, page
from tools.accuracy_picture import draw
from tools.hits import packed

DENSE = np.arange(100) < 90


def judged(wrong: int) -> dict[str, Any]:
    """Wrong where the dense model is, and on the first so many images."""
    right = DENSE & (np.arange(100) >= wrong)
    top1 = float(right.mean())
    return {"n": 100, "top1": top1, "agreement": 0.95, "right": packed(right)}


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
    assert best[8:] == ["-", "-", "95.00 %", "10", "300"]
    assert other[6].startswith("80.00 % (-10.00; ")


def test_the_interval_is_of_images_not_of_seeds() -> None:
    wide, narrow = ([row("cover", s, wrong) for s, wrong in enumerate(w)] for w in ((5,), (5, 5)))
    assert cells(lines_of(wide)[0])[6] == cells(lines_of(narrow)[0])[6]


def test_an_estimator_is_compared_with_the_default_seed_by_seed() -> None:
    rows = [row("cover", 0, 2), row("grid", 0, 5), row("grid", 1, 90), row("path", 1, 3)]
    by_name = {cells(line)[0]: cells(line) for line in lines_of(rows)}
    assert by_name["grid"][9].startswith("-3.00; ")
    assert by_name["path"][9] == "-"
    assert by_name["cover"][9] == "-"


def test_a_peer_needs_no_refit() -> None:
    peer = row("tome", 0, 0)
    peer["dense_weights"] = peer.pop("refit")
    assert cells(lines_of([peer])[0])[:3] == ["tome", "-", "-"]
    assert cells(lines_of([peer])[0])[4:7] == ["100", "90.00 % (+0.00; +0.00 to +0.00)", "-"]


def test_the_default_is_set_against_the_others_by_budget_and_stage() -> None:
    rows = [row("cover", 0, 2), row("cover", 1, 2), row("grid", 0, 30), row("grid", 1, 32)]
    rows += [row("path", 0, 2), row("random", 2, 9), row("tome", 0, 1)]
    dense = {"100": packed(DENSE)}
    text = page({"small": {"study": "S", "computed_in": "float32", "dense": dense, "rows": rows}})
    table, _, counted = text.partition("## `cover` against the others")[2].partition("\n\nOf ")
    (line,) = [line for line in table.splitlines() if line.startswith("| small")]
    assert cells(line) == [
        "small", "46%", "refit", "+0.00", "-", "-", "**-29.00**", "-", "-", "1 or 2"
    ]  # fmt: skip
    assert counted.startswith("2 differences, 1 are in favour of `cover` (1 by an interval")
    assert "and 0 against it (0 so)" in counted


def test_a_picture_is_drawn_of_studies_with_gaps(tmp_path: Path) -> None:
    rows = [row(name, 0, wrong, shape="geometric") for name, wrong in (("cover", 2), ("grid", 9))]
    record = {"study": "A study", "dense": {"100": packed(DENSE)}, "rows": rows}
    draw({"one": record, "empty": {**record, "rows": []}}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
