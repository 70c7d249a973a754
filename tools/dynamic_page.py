"""The page that `tools.dynamic_table` writes from its record."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimdeploy.measure.stats import mean_interval

STAGES = ("dense weights", "refit", "finetuned")


def markdown(record: dict[str, Any]) -> str:
    """The whole page."""
    settings = record["settings"]
    dense = _hits(settings["dense_right"])
    lines = [
        "# Per-image choice against static positions",
        "",
        f"Made by `python -m tools.dynamic_table --model {settings['model']}`; the rows that are "
        "missing were not run. "
        f"`{settings['model']}` on {settings['data']}, {settings['images']} unlabelled calibration "
        f"images, {settings['test_images']} test images, dense top-1 {dense.mean():.2%}.",
        "",
        "Static and the dynamic forms (named by their scorers, or `merge`) each take the shape of "
        "counts that `slim --shape auto` finds best for them (as it did when this was measured, "
        "the dynamic ones on 64 of the images); the cost of scoring is in the MACs, that of "
        "ToMe's similarities is not; the refit is that of `--ridge 1` for all. EViT and ToMe are "
        "written from their papers "
        "(`tools/peers`), lose tokens between attention and MLP, and like the others compute in "
        "the last block only the class token.",
        "",
        "In brackets: the difference to static at the same stage in points of top-1, with its 95 % "
        "interval (paired bootstrap over images). Cosine: of what the head reads to the dense "
        "model's, mean over all test images; it tells more than top-1 on so few.",
    ]
    if record["accuracy"]:
        lines += ["", "## Accuracy", "", *_accuracy(record, dense)]
    if record["speed"]:
        lines += ["", "## Speed", "", *_speed(record)]
    return "\n".join(lines) + "\n"


def _accuracy(record: dict[str, Any], dense: NDArray[np.float64]) -> list[str]:
    settings = record["settings"]
    recipe = next((r["recipe"] for r in record["accuracy"] if "recipe" in r), None)
    tuned = "fine-tuned"
    if recipe:
        tuned += f" ({recipe['epochs']:g} epoch of {recipe['images']} images)"
    names = ("dense weights", "after refit", tuned)
    head = " | ".join(f"{name} | cosine" for name in names)
    lines = [f"| MACs saved | method | GMAC | {head} |", "|---|---|---|" + "---|" * 6]
    rows = {(r["reduction"], r["method"], r["stage"]): r for r in record["accuracy"]}
    found = dict.fromkeys((r, m) for r, m, _ in rows)
    for reduction, method in sorted(found, key=lambda pair: pair[0]):
        first = rows[reduction, method, STAGES[0]]
        saved = 1 - first["macs"] / settings["dense_macs"]
        shape = first.get("shape")
        called = f"{method}, {shape}" if shape else method
        cells = [f"{saved:.1%}", called, f"{first['macs'] / 1e9:.3f}"]
        for stage in STAGES:
            row = rows.get((reduction, method, stage))
            cells += _judged(row, rows.get((reduction, "static", stage))) if row else ["-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _judged(row: dict[str, Any], static: dict[str, Any] | None) -> list[str]:
    hits = _hits(row["right"])
    shown = f"{hits.mean():.2%}"
    if static is not None and static is not row:
        gain = hits - _hits(static["right"])
        found = mean_interval(gain, seed=0)
        numbers = [f"{100 * x:+.1f}" for x in (float(gain.mean()), found.low, found.high)]
        shown += f" ({numbers[0]}; {numbers[1]} to {numbers[2]})"
    return [shown, f"{row['cosine']:.4f}"]


def _hits(digits: str) -> NDArray[np.float64]:
    return np.array([digit == "1" for digit in digits], dtype=np.float64)


def _speed(record: dict[str, Any]) -> list[str]:
    protocol = record["speed"][0]["protocol"]
    engine = protocol["dense"]
    lines = [
        f"ONNX Runtime {engine['version']} ({engine['provider']}), {engine['threads']} thread, "
        f"{protocol['cpu']}; both files in one process, interleaved call by call, "
        f"{protocol['rounds']} pairs after {protocol['warmup']} of warm-up. Median over the pairs "
        "of the time against which is compared over the method's, with its 95 % interval (block "
        f"bootstrap): above 1 the method is faster. Clock: {protocol['clock']}. Geometric counts. "
        "The peers were not exported.",
        "",
        "| MACs asked to save | method | against | batch 1 | batch 8 |",
        "|---|---|---|---|---|",
    ]
    for row in record["speed"]:
        cells = [f"{row['reduction']:.0%}", row["method"], row["against"]]
        for timed in row["rows"]:
            low, high = (timed["speedup_interval"][end] for end in ("low", "high"))
            cells.append(f"{timed['speedup']:.2f}x ({low:.2f} to {high:.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    return lines
