"""The committed page of `tools.file_accuracy`: from its record to Markdown."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from tools.accuracy_rows import Hits, hits, interval

HEADER = """# Slimming ONNX files by forward passes alone

`slim --onnx` on models of [the accuracy table](accuracy.md): Fashion-MNIST's DINOv2 ViT-S/14 at
196 x 196 and that of the solar cells at 224 x 224, as timm's modules and as Hugging Face's export
them, and the demo's ViT-Ti; geometric counts, search and refit on so many unlabelled images,
which the seed draws. Chosen by `cover`, which is static, image by image by `--dynamic predictor`,
or merged by `--dynamic merge`. Differences of top-1 in points with 95 % intervals (paired
bootstrap): to the dense model, and to what `slim --model` made from the same images, both computed
by torch as said (the files by ONNX Runtime in float32); same tokens: kept by both, of those kept by
either (by image: most often; merged: of each group the one that others join). Time of the whole
command; above the number of cores in the load, others
took part of them. Made by `python -m tools.file_accuracy`.
"""

SEEDS = """## Several seeds

To the dense model, the seeds' mean in points of top-1; the interval is over test images.

| model | fewer MACs | chosen by | exported by | images | seeds | to dense | CPU seconds, mean |
|---|---|---|---|---|---|---|---|"""

COLUMNS = (
    "model", "fewer MACs", "chosen by", "exported by", "images", "seed", "test images", "top-1",
    "to dense", "to `slim --model`", "torch in", "same class", "same tokens", "seconds",
    "CPU seconds", "peak MB", "cores", "load",
)  # fmt: skip

Row = dict[str, Any]


def page(rows: list[Row]) -> str:
    """The rows as Markdown."""
    head = ["## Each file", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([HEADER, *several(rows), *head, *map(line, rows)]) + "\n"


def line(row: Row) -> str:
    """What one file is."""
    cells = [
        row["study"], f"{row['mac_reduction']:.0%}", row["chosen_by"], row["by"], row["fitted"],
        row["seed"], row["images"],
        f"{row['top1']:.2%}",
        *("{:+.2f} ({:+.2f} to {:+.2f})".format(*row[k]) for k in ("to_dense", "to_torch")),
        row["torch_in"], f"{row['same_class_as_torch']:.2%}", f"{row['same_tokens']:.2%}",
        *(row[k] for k in ("seconds", "cpu_seconds", "peak_mb", "cores", "load")),
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def several(rows: list[Row]) -> list[str]:
    """A line for what was made with more than one seed."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        names = ("study", "mac_reduction", "chosen_by", "by", "fitted", "torch_in")
        groups[tuple(row[name] for name in names)].append(row)
    lines = [SEEDS]
    for (study, reduction, chosen, by, fitted, _), group in groups.items():
        if len(group) > 1:
            gains = [gain(row) for row in group]
            mean, ends = float(np.mean(gains)), interval(gains)
            seeds = ", ".join(str(row["seed"]) for row in group)
            spent = sum(row["cpu_seconds"] for row in group) / len(group)
            lines.append(
                f"| {study} | {reduction:.0%} | {chosen} | {by} | {fitted} | {seeds} | "
                f"{100 * mean:+.2f} ({100 * ends.low:+.2f} to {100 * ends.high:+.2f}) "
                f"| {spent:.0f} |"
            )
    return [*lines, ""] if len(lines) > 1 else []


def gain(row: Row) -> Hits:
    """1 where only the slim file is right, -1 where only the dense model is, else 0; [n]."""
    return hits(row["right"], row["images"]) - hits(row["dense_right"], row["images"])
