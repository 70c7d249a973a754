"""The page of accuracy says what its records say."""

from __future__ import annotations

from typing import Any

from tools.accuracy_page import page


def judged(top1: float) -> dict[str, Any]:
    gap = top1 - 0.9
    return {
        "n": 100, "dense_top1": 0.9, "top1": top1, "difference": gap, "low": gap - 0.01,
        "high": gap + 0.01, "agreement": 0.95,
    }  # fmt: skip


def row(impact: str, seed: int, top1: float, **more: Any) -> dict[str, Any]:
    key = {"mac_reduction": 0.46, "impact": impact, "shape": "auto", "seed": seed, "images": 192}
    return {**key, "cpu_seconds": 10.0, "refit": judged(top1), **more}


def test_seeds_are_averaged_and_the_best_comes_first() -> None:
    tuned = {"finetuned": judged(0.885), "finetune_cpu_seconds": 300.4}
    rows = [row("grid", 0, 0.8), row("cover", 0, 0.88, **tuned), row("cover", 1, 0.86)]
    text = page({"small": {"study": "A study", "computed_in": "float32", "rows": rows}})
    lines = [line for line in text.splitlines() if line.startswith("| ") and "impact" not in line]
    assert lines[0].startswith(
        "| cover | auto | 192 | 0, 1 | 100 | - | 87.00 % (-3.00; -4.00 to -2.00) "
        "| 88.50 % (-1.50; -2.50 to -0.50; 1 of 2 seeds) | 95.00 % | 10 | 300 |"
    )
    assert lines[1].startswith(
        "| grid | auto | 192 | 0 | 100 | - | 80.00 % (-10.00; -11.00 to -9.00)"
    )
    assert "dense top-1 90.00 % on 100 images" in text
    assert "### 46% fewer MACs" in text
