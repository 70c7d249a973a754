"""Where a slim model errs: on cells that annotators doubted, on defective ones or on others.

    python -m tools.label_doubt --output docs/bench/label_doubt.md     # after `make data`

Runs no model: it reads what docs/bench/accuracy/*.json hold of every test image, of `cover`, the
predictor and merging with geometric counts and 192 calibration images.
"""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from cyclopts import App

from slimdeploy.files import write_text
from slimdeploy.images import ImageFolder
from tools.accuracy_rows import COMPARED, DEFAULT, Hits, hits
from tools.hits import Bools

app = App(help=__doc__.splitlines()[0])
SHOWN = (DEFAULT, "predictor", "merge")
STUDIES = ("elpv_vit_tiny", "elpv_vit_tiny_float32", "elpv_vit_small", "elpv_vit_small_float32")
STAGES = {
    "dense_weights": "slim, dense weights",
    "refit": "slim, refit",
    "finetuned": "slim, fine-tuned",
}
HEADER = """# Which solar cells a slim model gets wrong

Made by `python -m tools.label_doubt` from the rows of [the table of accuracy](accuracy.md):
geometric counts, 192 calibration images, mean over the seeds. Chosen by: `cover`, the same patches
of every image, `predictor`, each image its own (`slim --dynamic predictor`), or `merge`, its most
similar ones averaged. `..._float32`: judged in float32, the others in bfloat16. Annotators gave
each of the {n} test photographs a probability of 0, 1/3, 2/3 or 1 that the cell is defective; above
0.5 it counts as defective. Sure: the {sure} of 0 and 1; doubted: the other {doubted}. Missed: share
of the {defective} defective ones called functional; false alarms: share of the {functional}
functional ones called defective.

| model | fewer MACs | chosen by | weights | seeds | top-1 | sure | doubted | missed | false alarm |
|---|---|---|---|---|---|---|---|---|---|
"""


def subsets(data: Path) -> dict[str, Bools]:
    """Which test images are sure and which defective, [n] each, in the order of the records."""
    with (data / "labels.csv").open(encoding="utf-8", newline="") as handle:
        known = {row["file"]: float(row["probability"]) for row in csv.DictReader(handle)}
    test = ImageFolder.open(data, "test")
    names = [Path(file).name for file in test.sample(len(test), seed=0).files]
    probability = np.array([known[name] for name in names])
    return {"sure": (probability < 0.01) | (probability > 0.99), "defective": probability > 0.5}


def figures(right: Hits, sure: Bools, defective: Bools) -> list[str]:
    """Cells of a row: top-1 on all, on the sure and the doubted; missed and false alarms."""
    parts = [right, right[sure], right[~sure], 1 - right[defective], 1 - right[~defective]]
    return [f"{100 * part.mean():.1f} %" for part in parts]


def lines(name: str, record: dict[str, Any], of: dict[str, Bools]) -> list[str]:
    """A model's part of the table."""
    n = len(of["sure"])
    dense = figures(hits(record["dense"][str(n)], n), **of)
    out = [[name, "-", "-", "dense", "-", *dense]]
    rows = [row for row in record["rows"] if (row["shape"], row["images"]) == COMPARED]
    for budget in sorted({row["mac_reduction"] for row in rows if row["impact"] in SHOWN}):
        for chosen, (stage, title) in product(SHOWN, STAGES.items()):
            alike = [
                row for row in rows if (row["mac_reduction"], row["impact"]) == (budget, chosen)
            ]
            if seeds := [hits(row[stage]["right"], n) for row in alike if stage in row]:
                cells = [name, f"{budget:.0%}", f"`{chosen}`", title, str(len(seeds))]
                out.append(cells + figures(np.mean(seeds, axis=0), **of))
    return ["| " + " | ".join(cells) + " |" for cells in out]


@app.default
def main(
    *,
    output: Path = Path("docs/bench/label_doubt.md"),
    data: Path = Path("build/elpv"),
    records: Path = Path("docs/bench/accuracy"),
) -> None:
    """Write the table."""
    of = subsets(data)
    sure, defective = (int(of[name].sum()) for name in ("sure", "defective"))
    n = len(of["sure"])
    text = HEADER.format(
        n=n, sure=sure, doubted=n - sure, defective=defective, functional=n - defective
    )
    for name in STUDIES:
        record = json.loads((records / f"{name}.json").read_text(encoding="utf-8"))
        text += "\n".join(lines(name, record, of)) + "\n"
    write_text(output, text)
    print(text)


if __name__ == "__main__":
    app()
