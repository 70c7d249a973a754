"""The committed page of accuracy: from the records of `tools.accuracy_table` to Markdown."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from tools.accuracy_rows import DEFAULT, Hits, Row, differences, hits, interval
from tools.accuracy_verdict import verdict

STAGES = {
    "dense_weights": "dense weights",
    "refit": "after refit",
    "finetuned": "after fine-tuning",
}
WITH_LONGER = STAGES | {"finetuned_longer": "four times as long"}
SECONDS = ("cpu_seconds", "finetune_cpu_seconds")
PEERS = ("evit", "tome")

HEADER = """# What slimming costs in accuracy

Top-1 on test images, and in brackets the difference to the dense model in points with its 95 %
interval (paired bootstrap over images; seeds are averaged first). "dense weights": the search only.
"after refit": search and closed-form refit on so many unlabelled training images ("images"), no
labels and no training. "after fine-tuning": from there, a short training towards the dense model's
outputs and tokens, which reads no labels either. "to `cover`": the difference to the default at the
same counts, images and seeds, in each of these. Each seed draws other calibration images.
`evit` and `tome` decide by image; they start fine-tuning from the dense weights. MACs saved are
those of the kept counts, at least the budget's. Fashion-MNIST's rows judged on 2,000 images serve
to compare estimators, not to tell the loss: the dense model gets fewer of those right than of all
10,000, and slim models look better against it there. Each row was made by

    python -m tools.accuracy_table run --study S --mac-reduction R --impact I --shape C \\
        --images M --seed N --test-images "judged on" --stages dense_weights refit finetuned

The ViT-Ti's weights are in the repository, and so is what was added to DINOv2's for the solar
cells' ViT-S ([how to unpack it](../../models/elpv_vit_small/README.md)). Fashion-MNIST's dense
model was made from DINOv2's ViT-S, stored in half precision, by the commands of
`tools/train_studies.sh DINOV2` in about 140 minutes on two cores, and is not kept: another training
gives other figures. `fashion_mnist_brief` is a lesser one ([its
weights](../../models/fashion_mnist_vit_small/README.md)) that was trained later, on a slower
machine, to see there what merging by image does. Fine-tuning a slim model took the CPU seconds
given, all cores together. Searches and refits compute in float32, models are judged and fine-tuned
in bfloat16, but for the studies named `..._float32`: those of the solar cells are the same models
and photographs, judged and fine-tuned in float32 (`--amp-dtype float32`). Three machines made the
rows:

- an AMD EPYC without bfloat16 or VNNI, with other jobs beside: those judged in float32;
- an AMD EPYC, with other jobs beside: all others of the solar cells' ViT-S; of the ViT-Ti those by
  image, of `joint`, "four times as long", and with geometric counts at 46 % and above those of
  seeds 1 and 2;
- a Xeon with AMX: the others.

Seconds do not compare between them, and bfloat16 is not rounded alike (one of the dense ViT-Ti's
525 answers differs; the EPYC's are taken).

Searches, refits and their settings were chosen without the test images. Of fine-tuning that is only
half true: its settings were chosen on validation images, but after other recipes had failed on test
images. Those made absolute steps (`finetune --no-relative-lr`) and read the labels, alone or beside
the dense model; each ran once, behind the refit of 768 images (ELPV: 192, and another dense
model, of 88.00 %), crops from 90 % (the first: 85 %) of the image:

| model | fewer MACs | `--lr` | `--layer-decay` | learns from | steps | top-1 before | after |
|---|---|---|---|---|---|---|---|
| Fashion-MNIST | 46 % | 1e-4 | 0.9 | labels, dense model | 160 of 64 | 94.10 % | 93.26 % |
| Fashion-MNIST | 54 % | 5e-5 | 0.8 | labels, dense model | 160 of 64 | 93.87 % | 93.84 % |
| Fashion-MNIST | 60 % | 5e-5 | 0.8 | labels, dense model | 160 of 64 | 93.52 % | 93.62 % |
| Fashion-MNIST | 54 % | 1.5e-4 | 0.8 | labels | 105 of 128 | 93.87 % | 93.67 % |
| Fashion-MNIST | 60 % | 1.5e-4 | 0.8 | labels | 105 of 128 | 93.52 % | 93.25 % |
| ELPV, ViT-S | 46 % | 1e-4 | 0.9 | labels, dense model | 114 of 32 | 87.43 % | 82.10 % |
"""


DEFAULTS = f"""## What the default loses

`{DEFAULT}` with counts of the budget alone, judged on all test images of each model (those of
`fashion_mnist_brief` are 2,000). "Four times as long" is another fine-tuning from the refit
(`--stages finetuned_longer`), in so many CPU seconds.

| model | fewer MACs | images | seeds | {" | ".join(WITH_LONGER.values())} | CPU s |
|---|---|---|---|---|---|---|---|---|"""


def page(records: dict[str, dict[str, Any]]) -> str:
    """The whole page."""
    parts = [HEADER, *defaults(records), *verdict(records)]
    for name, record in records.items():
        rows = record["rows"]
        shown = "; ".join(
            f"dense top-1 {100 * hits(digits, int(n)).mean():.2f} % on {n} images"
            for n, digits in sorted(record["dense"].items(), key=lambda pair: int(pair[0]))
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
                *table([r for r in rows if r["mac_reduction"] == budget], record["dense"]),
                "",
            ]
    return "\n".join(parts)


def defaults(records: dict[str, dict[str, Any]]) -> list[str]:
    """The default's rows of all images: a line a model, budget and number of calibration images."""
    lines = DEFAULTS.splitlines()
    for name, record in records.items():
        dense, groups = record["dense"], defaultdict[tuple[float, int], list[Row]](list)
        for row in record["rows"]:
            judged = {row[stage]["n"] for stage in WITH_LONGER if stage in row}
            if (row["impact"], row["shape"]) == (DEFAULT, "geometric") and judged == {
                max(map(int, dense))
            }:
                groups[row["mac_reduction"], row["images"]].append(row)
        for budget, images in sorted(groups):
            found = groups[budget, images]
            seeds = ", ".join(str(row["seed"]) for row in found)
            cells = [name, f"{budget:.0%}", str(images), seeds]
            cells += [_cell(found, stage, dense) for stage in WITH_LONGER]
            cells.append(_seconds(found, "finetune_cpu_seconds_longer"))
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def table(rows: list[Row], dense: dict[str, str]) -> list[str]:
    """One line an estimator and shape, best after the refit first."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["impact"], row["shape"], str(row["images"])].append(row)
    lines = [
        "| impact | counts | images | seeds | judged on | "
        + " | ".join(STAGES.values())
        + f" | to `{DEFAULT}`: dense weights | after refit | after fine-tuning"
        + " | agreement | search and refit, CPU s | fine-tuning, CPU s |",
        "|---|---|---|---|---|" + "---|" * len(STAGES) * 2 + "---|---|---|",
    ]
    order = sorted(groups, key=lambda g: -_mean(groups[g], _free(groups[g]), "top1"))
    for group in order:
        found, default = groups[group], groups.get((DEFAULT, *group[1:]), [])
        seeds, stage = ", ".join(str(r["seed"]) for r in found), _free(found)
        judged = "/".join(str(n) for n in sorted({r[stage]["n"] for r in found if stage in r}))
        named = (group[0], "-", "-") if group[0] in PEERS else group
        cells = [*named, seeds, judged, *(_cell(found, stage, dense) for stage in STAGES)]
        cells += [_behind(found, default, stage) for stage in STAGES]
        agreement = 100 * _mean(found, stage, "agreement")
        cells += [f"{agreement:.2f} %", *(_seconds(found, k) for k in SECONDS)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _free(rows: list[Row]) -> str:
    """The stage without training that says most: a peer has no refit."""
    return "refit" if any("refit" in row for row in rows) else "dense_weights"


def _mean(rows: list[Row], stage: str, field: str) -> float:
    return float(np.mean([row[stage][field] for row in rows if stage in row]))


def _seconds(rows: list[Row], field: str) -> str:
    found = [r[field] for r in rows if field in r]
    return f"{sum(found) / len(found):.0f}" if found else "-"


def _cell(rows: list[Row], stage: str, dense: dict[str, str]) -> str:
    """Top-1, and its difference to the dense model: the mean over seeds."""
    judged = [r[stage] for r in rows if stage in r]
    if not judged:
        return "-"
    gains = [_hits(j) - hits(dense[str(j["n"])], j["n"]) for j in judged]
    few = "" if len(judged) == len(rows) else f"; {len(judged)} of {len(rows)} seeds"
    return f"{100 * _mean(rows, stage, 'top1'):.2f} % ({_points(gains)}{few})"


def _behind(rows: list[Row], default: list[Row], stage: str) -> str:
    """The difference to the default's model, seed by seed, of those judged on the same images."""
    there = {(r["seed"], r[stage]["n"]): _hits(r[stage]) for r in default if stage in r}
    here = {(r["seed"], r[stage]["n"]): _hits(r[stage]) for r in rows if stage in r}
    gains = differences(here, there)
    return "-" if rows is default or not gains else _points(gains)


def _hits(judged: dict[str, Any]) -> Hits:
    return hits(judged["right"], judged["n"])


def _points(gains: list[Hits]) -> str:
    """A paired difference in points with its interval: images are drawn, seeds averaged."""
    found = interval(gains)
    low, high = 100 * found.low, 100 * found.high
    return f"{100 * float(np.mean(gains)):+.2f}; {low:+.2f} to {high:+.2f}"
