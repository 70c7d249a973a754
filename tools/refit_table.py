"""The closed-form refit's settings, judged on images it has not seen.

    python -m tools.refit_table --study elpv_vit_tiny

One search at each budget; then the refit with other strengths of the ridge, other weights of the
tokens that the head reads, and fewer or more images, one setting changed at a time. Judged on
validation images by what the head reads: its squared error, as a share of its variance over the
images. Finished rows are kept in the JSON file, so a killed run goes on.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from torch import Tensor

from slimdeploy.cli.common import load_arrays
from slimdeploy.console import note
from slimdeploy.files import write_text
from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.images import ImageFolder
from slimdeploy.slim.amp import autocast
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.model import SlimVit
from slimdeploy.slim.pipeline import SlimRequest, slim_model
from slimdeploy.slim.refit import refit_model
from slimdeploy.slim.timm_models import describe, load_model
from tools.accuracy_studies import STUDIES

app = App(help="The refit's settings, measured.")
RECORD = Path("docs/bench/refit.json")
IMAGES = 192
CELLS = "error | divergence | as dense | top-1"
ABOUT_CELLS = """Error: squared, of what the head reads, as a share of its variance over the images;
divergence: of the class probabilities from the dense model's, in thousandths of a nat."""
USUAL = (IMAGES, 1.0, RidgeOptions().read_weight)
TRIED = (
    *((IMAGES, strength, USUAL[2]) for strength in (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)),
    *((IMAGES, USUAL[1], weight) for weight in (1.0, 10.0, 100.0)),
    *((images, *USUAL[1:]) for images in (24, 48, 96, 384, 768)),
)
"""Images, strength of the ridge, weight of the tokens that the head reads."""


@dataclass(frozen=True)
class Bench:
    """A study's dense model, the images to draw from, and those that judge."""

    model: Any
    geometry: Any
    preprocessing: Any
    train: ImageFolder
    held: Tensor
    labels: Tensor
    wanted: Tensor

    @classmethod
    def of(cls, name: str, held_images: int) -> Bench:
        """The study `name`, judged on so many validation images, or all there are."""
        study = STUDIES[name]
        model, preprocessing = load_model(study.model, study.checkpoint, study.kwargs)
        val = ImageFolder.open(study.data, "val")
        val = val.sample(min(held_images, len(val)), seed=0)
        held, labels = torch.from_numpy(load_arrays(val, preprocessing)), torch.tensor(val.labels)
        geometry = describe(model, study.model, study.kwargs)
        train = ImageFolder.open(study.data, "train")
        return cls(model, geometry, preprocessing, train, held, labels, read(model, held))

    def calibration(self, images: int) -> Tensor:
        """So many unlabelled training images."""
        drawn = self.train.sample(images, seed=0)
        return torch.from_numpy(load_arrays(drawn, self.preprocessing))

    def judge(self, slim: Any) -> dict[str, float]:
        """Error of what the head reads, and top-1."""
        return self.said(read(slim.eval(), self.held))

    def said(self, found: Tensor) -> dict[str, float]:
        """The same, of what was read of the validation images, [n, D]."""
        wanted = self.wanted
        error = (found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
        classes = self._logits(found).argmax(1)
        return {"error": float(error), "top1": float((classes == self.labels).float().mean())}

    def cells(self, slim: Any) -> str:
        """Cells of a table: `CELLS`, of a slim model on the validation images."""
        found = read(slim.eval(), self.held)
        wanted, logits = (self._logits(x).log_softmax(-1) for x in (self.wanted, found))
        divergence = float((wanted.exp() * (wanted - logits)).sum(-1).mean()) * 1e3
        same = float((wanted.argmax(1) == logits.argmax(1)).float().mean())
        error, top1 = self.said(found).values()
        return f"{error:.4f} | {divergence:.1f} | {same:.1%} | {top1:.1%}"

    @torch.inference_mode()
    def _logits(self, read: Tensor) -> Tensor:
        logits: Tensor = self.model.forward_head(read[:, None])
        return logits


@torch.inference_mode()
def read(model: Any, images: Tensor) -> Tensor:
    """The class token that the head reads, [n, D]."""
    parts = []
    with autocast(torch.device("cpu"), "bfloat16"):
        for start in range(0, len(images), 32):
            parts.append(model.forward_features(images[start : start + 32])[:, 0].float())
    return torch.cat(parts)


@app.default
def table(
    *,
    study: str = "elpv_vit_tiny",
    mac_reduction: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (0.46, 0.6),
    held_images: int = 1000,
) -> None:
    """Measure what is not yet measured, and write the page."""
    rows = json.loads(RECORD.read_text()) if RECORD.is_file() else []
    bench = Bench.of(study, held_images)
    top1 = bench.judge(bench.model)["top1"]
    for budget in mac_reduction:
        request = SlimRequest(mac_reduction=budget, reconstruct="none")
        layers = slim_model(bench.model, bench.geometry, bench.calibration(IMAGES), request).layers
        keep = [list(layer.keep) for layer in layers]
        about = {"study": study, "mac_reduction": budget}
        done = {_setting(row) for row in rows if about.items() <= row.items()}
        for setting in (None, *TRIED):
            if setting in done:
                continue
            model = copy.deepcopy(bench.model)
            if setting is not None:
                state = Calibration(bench.model, bench.geometry, bench.calibration(setting[0]))
                refit_model(state, model, keep, RidgeOptions(*setting[1:]))
            judged = bench.judge(SlimVit(model, keep))
            said = {"held": len(bench.labels), "dense_top1": top1}
            rows.append({**about, "setting": setting, **said, **judged})
            write_text(RECORD, json.dumps(rows, indent=1) + "\n")
            write_text(RECORD.with_suffix(".md"), page(rows))
            note(json.dumps(rows[-1]))


def _setting(row: dict[str, Any]) -> tuple[float, ...] | None:
    return tuple(row["setting"]) if row["setting"] else None


def page(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Settings of the closed-form refit",
        "",
        "Error: squared, of what the head reads, as a share of its variance over validation "
        "images. One search (`cover`, geometric counts), then one setting of the refit changed at "
        f"a time; the usual one is {USUAL[0]} images, strength {USUAL[1]:g}, weight "
        f"{USUAL[2]:g} of the tokens that the head reads. Made by `python -m tools.refit_table "
        "--study S`; the studies are those of [the accuracy table](accuracy.md).",
    ]
    for study in dict.fromkeys(row["study"] for row in rows):
        mine = [row for row in rows if row["study"] == study]
        budgets = sorted({row["mac_reduction"] for row in mine})
        head = " | ".join(f"{b:.0%}: error | top-1" for b in budgets)
        lines += [
            "",
            f"## {study}",
            "",
            f"{mine[0]['held']} validation images, dense top-1 {mine[0]['dense_top1']:.2%}.",
            "",
            f"| images | strength | weight | {head} |",
            "|---|---|---|" + "---|---|" * len(budgets),
        ]
        for setting in (None, *TRIED):
            found = {r["mac_reduction"]: r for r in mine if _setting(r) == setting}
            if found:
                cells = [_cell(found.get(budget)) for budget in budgets]
                lines.append("| " + " | ".join([*_names(setting), *cells]) + " |")
    return "\n".join(lines) + "\n"


def _names(setting: tuple[float, ...] | None) -> list[str]:
    if setting is None:
        return ["no refit", "-", "-"]
    return [f"**{x:g}**" if setting == USUAL else f"{x:g}" for x in setting]


def _cell(row: dict[str, Any] | None) -> str:
    return f"{row['error']:.4f} | {row['top1']:.2%}" if row else "- | -"


if __name__ == "__main__":
    app()
