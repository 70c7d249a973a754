"""The student, a ViT-Ti/16 that can drop random patches, and its file format."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import timm
import torch
from data import CROP_PCT, INTERPOLATION, MEAN, STD
from safetensors.torch import load_file, save_file
from torch import nn

STUDENT_NAME = "vit_tiny_patch16_224"
CLASS_NAMES = ["defective", "functional"]
IMAGE_SIZE = 224


class Student(nn.Module):
    """The student with a linear map from its tokens to the teacher's, for distillation."""

    def __init__(self, teacher_width: int = 384) -> None:
        """Create the student with timm's random initialisation."""
        super().__init__()
        self.vit = timm.create_model(STUDENT_NAME, num_classes=len(CLASS_NAMES))
        self.to_teacher = nn.Linear(self.vit.embed_dim, teacher_width)

    def forward(
        self, images: torch.Tensor, kept: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return class logits and predicted teacher tokens.

        Args:
            images: A normalised batch.
            kept: Indices `[n, k]` of the patches to keep; all when None.
        """
        vit = self.vit
        tokens = vit._pos_embed(vit.patch_embed(images))
        if kept is not None:
            tokens = select_tokens(tokens, kept)
        for block in vit.blocks:
            tokens = block(tokens)
        tokens = vit.norm(tokens)
        return vit.head(tokens[:, 0]), self.to_teacher(tokens)


def select_tokens(tokens: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the class token and the kept patches of each image."""
    index = torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], dim=1)
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def random_patches(count: int, patches: int, keep: int, generator: torch.Generator) -> torch.Tensor:
    """Return `keep` random patch indices for each of `count` images."""
    return torch.rand(count, patches, generator=generator).argsort(dim=1)[:, :keep]


class MovingAverage:
    """An exponential moving average of a model's weights, with a warm-up of its horizon."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the present weights."""
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the present weights."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        for average, current in pairs:
            average.lerp_(current, 1 - decay)


def save_student(vit: nn.Module, path: Path) -> None:
    """Write the weights as float16 with the metadata that deployment needs, atomically."""
    preprocessing = {
        "input_size": [3, IMAGE_SIZE, IMAGE_SIZE],
        "mean": list(MEAN),
        "std": list(STD),
        "interpolation": INTERPOLATION,
        "crop_pct": CROP_PCT,
        "crop_mode": "center",
    }
    metadata = {
        "model": STUDENT_NAME,
        "num_classes": str(len(CLASS_NAMES)),
        "class_names": json.dumps(CLASS_NAMES),
        "preprocessing": json.dumps(preprocessing),
    }
    state = {name: tensor.half().contiguous() for name, tensor in vit.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file(state, partial, metadata=metadata)
    partial.chmod(0o644)
    os.replace(partial, path)


def load_student(path: Path) -> nn.Module:
    """Return the stored student in float32, in evaluation mode."""
    vit = timm.create_model(STUDENT_NAME, num_classes=len(CLASS_NAMES))
    vit.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return vit.eval()
