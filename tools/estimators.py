"""Compare the estimators of impact at equal MACs, before and after recovery.

    python -m tools.estimators --output models/elpv_vit_tiny/estimators

For each estimator the whole search runs (seeded), and the slim model is judged on the test split
three times: with the dense model's weights, after the closed-form refit, and after a short
fine-tuning. Each finished row is kept in the JSON file, so a killed run goes on. The test split is
looked at here only; nothing is chosen by it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
from cyclopts import App, Parameter
from numpy.typing import NDArray

from slimdeploy.cli.common import load_arrays, open_images
from slimdeploy.console import note
from slimdeploy.files import write_text
from slimdeploy.images import ImageFolder
from slimdeploy.measure.stats import bootstrap_interval
from slimdeploy.schedule import KeepSchedule, Provenance
from slimdeploy.slim.accuracy import torch_logits
from slimdeploy.slim.choices import ImpactName
from slimdeploy.slim.finetune import Finetuner
from slimdeploy.slim.model import SlimVit
from slimdeploy.slim.options import FinetuneOptions
from slimdeploy.slim.pipeline import SlimRequest, slim_model
from slimdeploy.slim.timm_models import describe, load_model

app = App(help="Compare the estimators of impact at equal MACs.")


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    model: Any
    name: str
    preprocessing: Any
    data: Path
    calibration: NDArray[np.float32]
    test: NDArray[np.float32]
    labels: NDArray[np.int64]
    dense_right: NDArray[np.bool_]
    mac_reduction: float
    epochs: int
    train_images: int

    def judge(self, weights: Any, keep: list[list[int]]) -> dict[str, float]:
        """Top-1, its paired difference to dense with a 95 % interval, and the features' cosine."""
        slim = SlimVit(weights, keep).eval()
        right = torch_logits(slim, self.test).argmax(1) == self.labels
        pairs = np.stack([right, self.dense_right], axis=1).astype(np.float64)
        interval = bootstrap_interval(pairs, lambda x: float((x[:, 0] - x[:, 1]).mean()), seed=0)
        return {
            "top1": float(right.mean()),
            "difference": float(right.mean() - self.dense_right.mean()),
            "low": interval.low,
            "high": interval.high,
            "cosine": feature_cosine(self.model, slim, self.test[:96]),
        }


@torch.inference_mode()
def feature_cosine(dense: Any, slim: SlimVit, images: NDArray[np.float32]) -> float:
    """Mean cosine between what the slim and the dense head read."""
    batch = torch.from_numpy(images)
    wanted = dense.forward_features(batch)[:, 0]
    found = slim.forward_features(batch)[:, 0]
    return float(torch.nn.functional.cosine_similarity(found, wanted).mean())


def row(bench: Bench, impact: ImpactName, seed: int) -> dict[str, Any]:
    """One estimator's search, refit and fine-tuning, each judged."""
    geometry = describe(bench.model, bench.name)
    request = SlimRequest(mac_reduction=bench.mac_reduction, impact=impact, seed=seed)
    found = slim_model(bench.model, geometry, torch.from_numpy(bench.calibration), request)
    keep = [list(layer.keep) for layer in found.layers]
    schedule = KeepSchedule(
        model=geometry,
        preprocessing=bench.preprocessing,
        layers=tuple(found.layers),
        provenance=Provenance(slimdeploy="table"),
    )
    result = {"impact": impact, "seed": seed, "dense_weights": bench.judge(bench.model, keep)}
    result["refit"] = bench.judge(found.model, keep)
    if bench.epochs:
        options = FinetuneOptions(
            epochs=bench.epochs,
            seed=seed,
            lr=1e-4,
            relative_lr=True,
            warmup_epochs=0.3,
            smoothing=0.05,
            vflip=0.5,
            min_scale=0.9,
            color_jitter=0.1,
        )
        data = ImageFolder.open(bench.data, "train")
        data = data.sample(min(bench.train_images, len(data)), seed=0)
        tuned = Finetuner(
            bench.model, found.model, schedule, data, bench.preprocessing, options
        ).run()
        result["finetuned"] = bench.judge(tuned, keep)
    return result


@app.default
def main(
    *,
    output: Path,
    model: str = "vit_tiny_patch16_224",
    checkpoint: Path = Path("models/elpv_vit_tiny/model.safetensors"),
    data_dir: Path = Path("build/elpv"),
    mac_reduction: float = 0.46,
    epochs: int = 1,
    images: int = 192,
    train_images: int = 512,
    impacts: Annotated[list[ImpactName] | None, Parameter(consume_multiple=True)] = None,
    seeds: int = 1,
) -> None:
    """Make the table: OUTPUT.json holds the rows, OUTPUT.md shows them."""
    bench = _bench(model, checkpoint, data_dir, mac_reduction, epochs, images, train_images)
    path = output.with_suffix(".json")
    settings = {
        "model": model,
        "mac_reduction": mac_reduction,
        "epochs": epochs,
        "images": images,
        "train_images": train_images,
        "test_images": len(bench.labels),
        "dense_top1": float(bench.dense_right.mean()),
    }
    rows = _finished(path, settings)
    for seed in range(seeds):
        for impact in impacts or get_args(ImpactName):
            if any((r["impact"], r["seed"]) == (impact, seed) for r in rows):
                continue
            note(f"{impact}, seed {seed}")
            rows.append(row(bench, impact, seed))
            note(json.dumps(rows[-1]))
            write_text(path, json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    write_text(output.with_suffix(".md"), markdown(settings, rows))


def _bench(
    name: str,
    checkpoint: Path,
    data: Path,
    reduction: float,
    epochs: int,
    images: int,
    train_images: int,
) -> Bench:
    model, preprocessing = load_model(name, checkpoint)
    test = open_images(data, None, "test")
    arrays = np.concatenate([b.images for b in test.batches(preprocessing, 32)])
    labels = np.array(test.labels)
    return Bench(
        model=model,
        name=name,
        preprocessing=preprocessing,
        data=data,
        calibration=load_arrays(
            open_images(data, None, "train").sample(images, seed=0), preprocessing
        ),
        test=arrays,
        labels=labels,
        dense_right=torch_logits(model, arrays).argmax(1) == labels,
        mac_reduction=reduction,
        epochs=epochs,
        train_images=train_images,
    )


def _finished(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    before = json.loads(path.read_text())
    return list(before["rows"]) if before["settings"] == settings else []


def markdown(settings: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table as Markdown, best refit first."""
    lines = [
        f"`{settings['model']}`, {settings['mac_reduction']:.0%} fewer MACs or more, geometric "
        f"counts, {settings['images']} calibration images, {settings['test_images']} test images; "
        f"dense top-1 {settings['dense_top1']:.2%}. In brackets: difference to dense in points, "
        "with its 95 % interval (paired bootstrap over images). Cosine: of what the head reads, "
        "slim against dense, mean over 96 test images. Made by `python -m tools.estimators`.",
        "",
        "| impact | seed | dense weights | cosine | after refit | cosine | "
        f"after fine-tuning ({settings['epochs']} epoch of {settings['train_images']} images) | "
        "cosine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: -r["refit"]["cosine"]):
        cells = [r["impact"], str(r["seed"])]
        for stage in ("dense_weights", "refit", "finetuned"):
            cells += _cells(r[stage]) if stage in r else ["-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cells(judged: dict[str, float]) -> list[str]:
    difference, low, high = (100 * judged[k] for k in ("difference", "low", "high"))
    shown = f"{judged['top1']:.2%} ({difference:+.1f}; {low:+.1f} to {high:+.1f})"
    return [shown, f"{judged['cosine']:.4f}"]


if __name__ == "__main__":
    app()
