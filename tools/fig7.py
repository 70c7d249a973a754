"""One layer pruned, all others dense, nothing recovered: does the path score choose best?

    python -m tools.fig7

Fig. 7 of Patch Slimming (Tang et al., CVPR 2022) prunes a single layer of DeiT-S and finds that the
path score keeps more accuracy than the norm of the layer's own attention, and that more than a
random choice. Here the same is done to the demo's model, on its test images, and the error of what
the head reads is taken as well: on half a thousand images it is far less noisy than accuracy.

Two meanings of pruning are measured. `zeros` is the paper's: what was dropped leaves the layer as
rows of zeros, which the next layers compute on. `gone` is what slimdeploy exports: dropped tokens
do not exist from there on. Each finished row is kept, so a run that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cyclopts import App
from numpy.typing import NDArray
from torch import Tensor

from slimdeploy.cli.common import load_arrays, open_images
from slimdeploy.console import note
from slimdeploy.files import write_text
from slimdeploy.measure.stats import Interval, mean_interval
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.impact import make_impact
from slimdeploy.slim.model import embed, slim_block
from slimdeploy.slim.timm_models import describe, load_model

app = App(help="Reproduce the experiment of Patch Slimming's Fig. 7.")

FORMS = ("zeros", "gone")
SCORES = ("path", "attention", "random")
PAIRS = (("path", "attention"), ("attention", "random"), ("path", "random"))
_BATCH = 64
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Bench:
    """The model, the images that are scored, and those that judge."""

    model: Any
    state: Calibration
    images: Tensor
    labels: NDArray[np.int64]
    known: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)

    def kept(self, score: str, seed: int, layer: int, ratio: float) -> Tensor:
        """The class token and the best of the patches, ascending."""
        found = self._scores(score, seed, layer)
        patches = 1 + torch.argsort(found[1:], descending=True, stable=True)
        count = round((1 - ratio) * (self.state.tokens - 1))
        return torch.cat([torch.zeros(1, dtype=torch.long), patches[:count].sort().values])

    def _scores(self, score: str, seed: int, layer: int) -> Tensor:
        """Of all tokens, with every layer above dense but the last, which keeps the class token."""
        key, state = (score, seed, layer), self.state
        if key not in self.known:
            tokens = list(range(state.tokens))
            state.keep = dict.fromkeys(range(layer + 1, state.depth), tokens) | {state.depth: [0]}
            self.known[key] = make_impact(score, seed).scores(state, layer)  # type: ignore[arg-type]
        return self.known[key]

    @torch.inference_mode()
    def streams(self, layer: int) -> list[Tensor]:
        """The dense input of a layer (from 1), batch by batch."""
        found = []
        for images in self.images.split(_BATCH):
            x = embed(self.model, images)
            for block in self.model.blocks[: layer - 1]:
                x = slim_block(block, x, None)
            found.append(x)
        return found

    @torch.inference_mode()
    def read(self, streams: list[Tensor], layer: int, rows: Tensor | None, form: str) -> Tensor:
        """What the head reads, [n, D], when `layer` keeps `rows` of its input."""
        blocks = self.model.blocks
        found = []
        for x in streams:
            y = slim_block(blocks[layer - 1], x, rows)
            if form == "zeros" and rows is not None:
                y = torch.zeros_like(x).index_copy(1, rows, y)
            for block in blocks[layer:-1]:
                y = slim_block(block, y, None)
            found.append(self.model.norm(slim_block(blocks[-1], y, torch.tensor([0])))[:, 0])
        return torch.cat(found)

    @torch.inference_mode()
    def right(self, read: Tensor) -> NDArray[np.bool_]:
        """Which images the head gets right."""
        logits = self.model.forward_head(read[:, None])
        return logits.argmax(1).numpy() == self.labels


def rows_of(
    bench: Bench, streams: list[Tensor], layer: int, form: str, ratios: list[float], seeds: int
) -> Iterator[dict[str, Any]]:
    """A row for each score, seed and ratio."""
    dense = bench.read(streams, layer, None, form)
    norm, top1 = float(dense.double().square().sum(1).mean()), float(bench.right(dense).mean())
    for score in SCORES:
        for seed in range(seeds if score == "random" else 1):
            for ratio in ratios:
                read = bench.read(streams, layer, bench.kept(score, seed, layer, ratio), form)
                error = (read - dense).double().square().sum(1) / norm
                yield {
                    "layer": layer, "form": form, "score": score, "seed": seed, "ratio": ratio,
                    "errors": [round(x, 6) for x in error.tolist()],
                    "right": "".join("01"[int(x)] for x in bench.right(read)),
                    "dense_top1": top1,
                }  # fmt: skip


@app.default
def main(
    *,
    output: Path = Path("docs/bench/fig7"),
    work: Path = Path("build/fig7.json"),
    model: str = "vit_tiny_patch16_224",
    checkpoint: Path = Path("models/elpv_vit_tiny/model.safetensors"),
    data_dir: Path = Path("build/elpv"),
    layers: tuple[int, ...] = (11, 7, 3),
    ratios: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
    images: int = 192,
    test_images: int = 525,
    seeds: int = 3,
) -> None:
    """Make the table: WORK holds each image's error, OUTPUT.json and OUTPUT.md what they say."""
    bench = _bench(model, checkpoint, data_dir, images, test_images)
    settings = {"model": model, "images": images, "test_images": len(bench.labels)}
    before = json.loads(work.read_text()) if work.is_file() else {}
    rows = before["rows"] if before.get("settings") == settings else []
    done = {(row["layer"], row["form"], row["ratio"]) for row in rows}
    for layer in layers:
        streams: list[Tensor] = []
        for form in FORMS:
            left = [ratio for ratio in ratios if (layer, form, ratio) not in done]
            if not left:
                continue
            streams = streams or bench.streams(layer)
            rows.extend(rows_of(bench, streams, layer, form, left, seeds))
            write_text(work, json.dumps({"settings": settings, "rows": rows}) + "\n")
            note(f"layer {layer}, {form}: done")
    record = {"settings": settings, "dense_top1": rows[0]["dense_top1"], "cells": cells_of(rows)}
    write_text(output.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    write_text(output.with_suffix(".md"), markdown(record))


def _bench(name: str, checkpoint: Path, data: Path, images: int, test_images: int) -> Bench:
    model, preprocessing = load_model(name, checkpoint)
    train = open_images(data, None, "train", labelled=False).sample(images, seed=0)
    test = open_images(data, None, "test").sample(test_images, seed=0)
    scored = torch.from_numpy(load_arrays(train, preprocessing))
    return Bench(
        model=model,
        state=Calibration(model, describe(model, name), scored),
        images=torch.from_numpy(load_arrays(test, preprocessing)),
        labels=np.array(test.labels),
    )


def cells_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per layer, form and ratio each score's error and top-1, and which of two errs less."""
    cells: dict[tuple[int, str, float], dict[str, tuple[Values, Values]]] = {}
    for row in rows:
        key = row["layer"], row["form"], row["ratio"]
        of_score = [r for r in rows if (r["layer"], r["form"], r["ratio"]) == key
                    and r["score"] == row["score"]]  # fmt: skip
        errors = np.mean([r["errors"] for r in of_score], axis=0)
        right = np.mean([[x == "1" for x in r["right"]] for r in of_score], axis=0)
        cells.setdefault(key, {})[row["score"]] = errors, right
    found = []
    for (layer, form, ratio), scores in sorted(cells.items()):
        cell: dict[str, Any] = {"layer": layer, "form": form, "ratio": ratio}
        for score, (errors, right) in scores.items():
            cell[score] = {"error": float(errors.mean()), "top1": float(right.mean())}
        for better, worse in PAIRS:
            gain = mean_interval(scores[worse][0] - scores[better][0], seed=0)
            cell[f"{better} before {worse}"] = verdict(gain)
        found.append(cell)
    return found


def verdict(gain: Interval) -> str:
    """Whether the better score errs less, by the 95 % interval of the paired difference."""
    return "yes" if gain.low > 0 else "no" if gain.high < 0 else "unclear"


def markdown(record: dict[str, Any]) -> str:
    """The record as tables."""
    settings, cells = record["settings"], record["cells"]
    lines = [
        "# One layer pruned, all others dense: the experiment of Patch Slimming's Fig. 7",
        "",
        f"`{settings['model']}` of `models/elpv_vit_tiny`, nothing recovered, scores of "
        f"{settings['images']} unlabelled training images, {settings['test_images']} test images; "
        f"dense top-1 {record['dense_top1']:.2%}. `path`: the paper's score; `attention`: norm of "
        "what the layer's own attention gives a token; `random`: mean of several draws. Error: "
        "relative squared error of what the head reads. `zeros`: dropped rows are zeros that later "
        "layers compute on, as in the paper; `gone`: they do not exist from there on, as in what "
        "is exported. `path < attention`: whether path errs less, by the 95 % interval of the "
        "paired difference (bootstrap over images). Made by `python -m tools.fig7`, which goes on "
        "where it stopped.",
    ]
    for form in FORMS:
        here = [cell for cell in cells if cell["form"] == form]
        if here:
            lines += ["", f"## Dropped tokens: {form}", "", *_table(here), "", _tally(here)]
    return "\n".join(lines) + "\n"


def _table(cells: list[dict[str, Any]]) -> list[str]:
    heads = [f"{kind} {score}" for kind in ("error", "top-1") for score in SCORES]
    lines = [
        "| layer | pruned | "
        + " | ".join(heads)
        + " | "
        + " | ".join(f"{a} < {b}" for a, b in PAIRS)
        + " |",
        "|---" * (len(heads) + 2 + len(PAIRS)) + "|",
    ]
    for cell in cells:
        shown = [f"{cell[score]['error']:.4f}" for score in SCORES]
        shown += [f"{cell[score]['top1']:.2%}" for score in SCORES]
        shown += [cell[f"{a} before {b}"] for a, b in PAIRS]
        lines.append(f"| {cell['layer']} | {cell['ratio']:.0%} | " + " | ".join(shown) + " |")
    return lines


def _tally(cells: list[dict[str, Any]]) -> str:
    parts = []
    for name in (f"{a} before {b}" for a, b in PAIRS):
        verdicts = [cell[name] for cell in cells]
        parts.append(
            f"{name} in {verdicts.count('yes')} of {len(verdicts)}, the other way round in "
            f"{verdicts.count('no')}, unclear in {verdicts.count('unclear')}"
        )
    both = sum(
        cell["path"]["top1"] >= cell["attention"]["top1"] >= cell["random"]["top1"]
        for cell in cells
    )
    return (
        f"By error: {'; '.join(parts)}. By top-1 the paper's order, path, attention, random, holds "
        f"in {both} of {len(cells)}."
    )


if __name__ == "__main__":
    app()
