"""Does it pay to match tokens at several depths? `python -m tools.token_targets --output DIR`.

Fine-tunes the demo's model from the same refitted weights with `--token-weight` 0 and more, the
same images in the same order, and compares the results with the dense model on the test images:
divergence of the outputs (Kullback-Leibler), error of what the head reads, top-1. Every run is kept
in DIR/tokens.json; DIR/tokens.md is the table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from cyclopts import App
from torch import Tensor
from torch.nn import functional as F

from slimdeploy.cli.common import open_images
from slimdeploy.console import note
from slimdeploy.files import write_text
from slimdeploy.images import ImageFolder
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.finetune import Finetuner
from slimdeploy.slim.model import SlimVit
from slimdeploy.slim.options import FinetuneOptions
from slimdeploy.slim.recovery import relative_error
from slimdeploy.slim.refit import refit_model
from slimdeploy.slim.timm_models import load_model
from slimdeploy.slim.types import Vit

app = App(help="Compare fine-tuning with and without tokens at several depths as targets.")

MODEL, DATA = Path("models/elpv_vit_tiny"), Path("build/elpv")
SETTINGS: dict[str, Any] = {
    "relative_lr": True, "lr": 4e-4, "warmup_epochs": 0.1, "smoothing": 0.05, "vflip": 0.5,
    "min_scale": 0.9, "color_jitter": 0.1, "amp_dtype": "bfloat16", "workers": 1,
}  # fmt: skip


@app.default
def compare(
    *,
    output: Path = Path("docs/bench"),
    epochs: float = 0.5,
    weights: tuple[float, ...] = (0.0, 1.0, 5.0),
    seeds: int = 2,
) -> None:
    """Fine-tune with every weight and seed that is not in the record yet.

    Args:
        output: folder of tokens.json and tokens.md.
        epochs: passes over the 1,836 training images.
        weights: values of --token-weight.
        seeds: trainings per weight.
    """
    dense, preprocessing = load_model("vit_tiny_patch16_224", MODEL / "model.safetensors")
    schedule = KeepSchedule.read(MODEL / "sched.json")
    start = refitted(dense, schedule, preprocessing)
    record = output / "tokens.json"
    found = json.loads(record.read_text()) if record.is_file() else {"rows": {}}
    found.update(epochs=epochs, settings=SETTINGS)
    found["rows"]["start"] = judge(dense, start, schedule, preprocessing)
    for seed in range(seeds):
        for weight in weights:
            name = f"{weight:g}-{seed}"
            if name in found["rows"]:
                continue
            note(f"token weight {weight:g}, seed {seed}")
            options = FinetuneOptions(epochs=epochs, token_weight=weight, seed=seed, **SETTINGS)
            data = open_images(DATA, "train", "train")
            tuned = Finetuner(dense, start, schedule, data, preprocessing, options).run()
            found["rows"][name] = {
                "token_weight": weight,
                "seed": seed,
                **judge(dense, tuned, schedule, preprocessing),
            }
            write_text(record, json.dumps(found, indent=2) + "\n")
            write_text(output / "tokens.md", table(found))


def refitted(dense: Vit, schedule: KeepSchedule, preprocessing: Preprocessing) -> Vit:
    """The dense model's weights refitted for the schedule on 192 training images."""
    import copy

    sample = open_images(DATA, "train", "train").sample(192, seed=0)
    images = torch.cat([torch.from_numpy(b.images) for b in sample.batches(preprocessing, 32)])
    model = copy.deepcopy(dense)
    refit_model(Calibration(dense, schedule.model, images), model, schedule.keep)
    return model


@torch.inference_mode()
def judge(
    dense: Vit, weights: Vit, schedule: KeepSchedule, preprocessing: Preprocessing
) -> dict[str, float]:
    """How near the slim model is to the dense one on the test images, and its accuracy."""
    folder, slim = ImageFolder.open(DATA, "test"), SlimVit(weights, schedule.keep).eval()
    sums, reads = torch.zeros(3), len(schedule.model.head_reads)
    for batch in folder.batches(preprocessing, 25):
        images, labels = torch.from_numpy(batch.images), torch.from_numpy(batch.labels)
        wanted, found = dense.forward_features(images), slim.forward_features(images)
        logits, told = slim.forward_head(found), dense.forward_head(wanted)
        error = relative_error(found[:, :reads], wanted[:, :reads])
        right = (logits.argmax(1) == labels).float().mean()
        sums += len(images) * torch.stack([divergence(logits, told), error, right])
    names = ("divergence", "head_input_error", "top1")
    return dict(zip(names, (sums / len(folder)).tolist(), strict=True))


def divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of softmax(found) from softmax(wanted), in nats."""
    pair = (F.log_softmax(found, -1), F.log_softmax(wanted, -1))
    return F.kl_div(*pair, reduction="batchmean", log_target=True)


def table(found: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = [
        "Fine-tuning of the demo's model with tokens at three depths (after blocks 3, 6 and 9) as "
        f"further targets: {found['epochs']:g} passes over 1,836 images in bfloat16, the same "
        "images in the same order for every weight. Against the dense model on 525 test images. "
        "Made by `python -m tools.token_targets`.",
        "",
        "| `--token-weight` | seed | divergence of outputs, nats | error of the head's input | "
        "top-1 |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        said = "none (refitted)" if name == "start" else f"{row['token_weight']:g}"
        lines.append(
            f"| {said} | {row.get('seed', '')} | {row['divergence']:.4f} | "
            f"{row['head_input_error']:.4f} | {row['top1']:.2%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app()
