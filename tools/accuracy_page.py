"""The committed page of accuracy: from the records of `tools.accuracy_table` to Markdown."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

STAGES = {
    "dense_weights": "dense weights",
    "refit": "after refit",
    "finetuned": "after fine-tuning",
}
Row = dict[str, Any]

HEADER = """# What slimming costs in accuracy

Top-1 on test images, and in brackets the difference to the dense model in points with its 95 %
interval (paired bootstrap over images, mean over seeds). "dense weights": the search only. "after
refit": search and closed-form refit on so many unlabelled training images ("images"), no labels and
no training. "after fine-tuning": a short distillation behind it. Each seed draws other calibration
images. MACs saved are those of the kept counts, at least the budget's. Nothing was chosen by the
test images. Each row was made by

    python -m tools.accuracy_table run --study S --mac-reduction R --impact I --shape C \\
        --images M --seed N

The dense model of Fashion-MNIST, of which the repository holds no weights, was made from DINOv2's,
stored in half precision, in 85 minutes of two shared cores:

    python -m tools.fashion_mnist.prepare
    python -m tools.train_dense --model vit_small_patch14_dinov2 --data-dir build/fashion_mnist \\
        --batch-size 128 --initial-checkpoint DINOV2 --stages 98:3.5,196:0.45 --lr 3e-4 \\
        --freeze-blocks 2 --output build/fm/first.safetensors
    python -m tools.train_dense --model vit_small_patch14_dinov2 --data-dir build/fashion_mnist \\
        --batch-size 128 --initial-checkpoint build/fm/first.safetensors --lr 1.5e-4 --seed 1 \\
        --ema-decay 0.99 --stages 196/0.75:0.85,196:0.04 --output build/fm/dense.safetensors
"""


def page(records: dict[str, dict[str, Any]]) -> str:
    """The whole page."""
    parts = [HEADER]
    for name, record in records.items():
        rows = record["rows"]
        dense = {(r["refit"]["n"], r["refit"]["dense_top1"]) for r in rows if "refit" in r}
        shown = "; ".join(
            f"dense top-1 {100 * top1:.2f} % on {n} images" for n, top1 in sorted(dense)
        )
        parts += [
            f"## {record['study']}",
            "",
            f"`--study {name}`; {shown}; computed in {record['computed_in']}.",
            "",
        ]
        for budget in sorted({r["mac_reduction"] for r in rows}):
            parts += [
                f"### {budget:.0%} fewer MACs",
                "",
                *table([r for r in rows if r["mac_reduction"] == budget]),
                "",
            ]
    return "\n".join(parts)


def table(rows: list[Row]) -> list[str]:
    """One line an estimator and shape, best after the refit first."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["impact"], row["shape"], str(row["images"])].append(row)
    lines = [
        "| impact | counts | images | seeds | judged on | "
        + " | ".join(STAGES.values())
        + " | agreement | search and refit, CPU s |",
        "|---|---|---|---|---|" + "---|" * len(STAGES) + "---|---|",
    ]
    order = sorted(groups, key=lambda g: -_mean(groups[g], "refit", "top1"))
    for group in order:
        found = groups[group]
        seeds = ", ".join(str(r["seed"]) for r in found)
        judged = "/".join(str(n) for n in sorted({r["refit"]["n"] for r in found}))
        cells = [*group, seeds, judged, *(_cell(found, stage) for stage in STAGES)]
        agreement = 100 * _mean(found, "refit", "agreement")
        seconds = sum(r["cpu_seconds"] for r in found) / len(found)
        lines.append("| " + " | ".join([*cells, f"{agreement:.2f} %", f"{seconds:.0f}"]) + " |")
    return lines


def _mean(rows: list[Row], stage: str, field: str) -> float:
    return sum(r[stage][field] for r in rows) / len(rows)


def _cell(rows: list[Row], stage: str) -> str:
    rows = [r for r in rows if stage in r]
    if not rows:
        return "-"
    top1, gap, low, high = (
        100 * _mean(rows, stage, k) for k in ("top1", "difference", "low", "high")
    )
    few = f", {len(rows)} seeds" if len(rows) > 1 else ""
    return f"{top1:.2f} % ({gap:+.2f}; {low:+.2f} to {high:+.2f}{few})"
