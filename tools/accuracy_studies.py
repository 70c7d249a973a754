"""The dense models whose slim ones `tools.accuracy_table` judges, and how those are fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from slimdeploy.slim.options import FinetuneOptions

Stage = Literal["dense_weights", "refit", "finetuned", "finetuned_longer"]
LONGER = 4
"""Steps of `finetuned_longer` in those of `finetuned`."""


@dataclass(frozen=True)
class Study:
    """A dense model on a data set, and how its slim models are fine-tuned."""

    title: str
    model: str
    checkpoint: Path
    data: Path
    img_size: int
    finetune: FinetuneOptions
    kwargs: dict[str, int] = field(default_factory=dict)


# Taught by the dense model alone, in steps proportional to each weight: chosen on Fashion-MNIST's
# validation images, by the divergence from the dense model's outputs.
RECIPE: dict[str, Any] = {
    "relative_lr": True, "lr": 3e-4, "task_loss_weight": 0.0, "min_scale": 0.9,
    "amp_dtype": "bfloat16",
}  # fmt: skip
_FM = FinetuneOptions(
    epochs=1, max_steps=200, batch_size=64, warmup_epochs=0.02, color_jitter=0.0, **RECIPE
)
STUDIES = {
    "fashion_mnist": Study(
        "Fashion-MNIST, DINOv2 ViT-S/14 at 196 x 196 (196 + 1 tokens)",
        "vit_small_patch14_dinov2",
        Path("build/fm/dense.safetensors"),
        Path("build/fashion_mnist"),
        196,
        _FM,
        {"img_size": 196},
    ),
    "fashion_mnist_brief": Study(
        "Fashion-MNIST, DINOv2 ViT-S/14 at 196 x 196, trained for 40 CPU minutes",
        "vit_small_patch14_dinov2",
        Path("build/fm/brief.safetensors"),
        Path("build/fashion_mnist"),
        196,
        _FM,
        {"img_size": 196},
    ),
    "elpv_vit_small": Study(
        "ELPV solar cells, DINOv2 ViT-S/14 at 224 x 224 (256 + 1 tokens)",
        "vit_small_patch14_dinov2",
        Path("build/elpv_vit_small/dense.safetensors"),
        Path("build/elpv"),
        224,
        FinetuneOptions(epochs=2, warmup_epochs=0.2, vflip=0.5, color_jitter=0.1, **RECIPE),
        {"img_size": 224},
    ),
    "elpv_vit_tiny": Study(
        "ELPV solar cells, ViT-Ti/16 of `models/elpv_vit_tiny` (196 + 1 tokens)",
        "vit_tiny_patch16_224",
        Path("models/elpv_vit_tiny/model.safetensors"),
        Path("build/elpv"),
        224,
        FinetuneOptions(epochs=2, warmup_epochs=0.2, vflip=0.5, color_jitter=0.1, **RECIPE),
    ),
}


def recipe(study: Study, stage: Stage, seed: int) -> FinetuneOptions:
    """How a stage is fine-tuned."""
    options = replace(study.finetune, seed=seed)
    if stage == "finetuned":
        return options
    if options.max_steps is None:
        return replace(options, epochs=LONGER * options.epochs)
    return replace(options, max_steps=LONGER * options.max_steps)
