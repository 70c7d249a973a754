"""What `tools.train_dense` feeds a model: images, targets, augmentation, and in what order."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from slimdeploy.images import ImageFolder, read_image
from slimdeploy.preprocessing import to_rgb

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Step:
    """One optimiser step: image size in pixels, share of patches dropped, training rows."""

    size: int
    drop: float
    rows: Tensor


def load_arrays(folder: ImageFolder) -> tuple[Tensor, Tensor]:
    """All images as bytes, [n, C, H, W] (C is 1 if all are grey), and labels [n]."""
    images = [np.asarray(to_rgb(read_image(file))) for file in folder.files]
    data = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    if bool((data[:, :1] == data[:, 1:]).all()):
        data = data[:, :1]
    return data.contiguous(), torch.tensor(folder.labels)


def soft_targets(folder: ImageFolder, annotations: Path | None) -> Tensor:
    """Class probabilities to learn, [n, classes]: of the labels, or halfway to the annotators'.

    Args:
        annotations: a CSV of the columns `file` and `probability`, that of the first class.
    """
    targets = F.one_hot(torch.tensor(folder.labels), len(folder.classes)).float()
    if annotations is None:
        return targets
    with annotations.open(encoding="utf-8", newline="") as handle:
        known = {row["file"]: float(row["probability"]) for row in csv.DictReader(handle)}
    first = torch.tensor([known[Path(file).name] for file in folder.files])
    return (targets + torch.stack([first, 1 - first], dim=1)) / 2


def evenly(data: tuple[Tensor, Tensor], n: int) -> tuple[Tensor, Tensor]:
    """`n` of the images and labels, or all if there are fewer."""
    rows = torch.arange(min(n, len(data[1]))) * len(data[1]) // min(n, len(data[1]))
    return data[0][rows], data[1][rows]


def plan_steps(stages: str, n: int, batch: int, seed: int) -> list[Step]:
    """The whole run, stage after stage: `98:1.5,196/0.6:1` is size[/dropped patches]:epochs."""
    generator, steps = torch.Generator().manual_seed(seed), []
    for stage in stages.split(","):
        size, epochs = stage.split(":")
        size, _, drop = size.partition("/")
        wanted = round(float(epochs) * n / batch)
        rows = torch.cat(
            [torch.randperm(n, generator=generator) for _ in range(math.ceil(float(epochs)))]
        )
        steps += [Step(int(size), float(drop or 0), part) for part in rows.split(batch)[:wanted]]
    return steps


def augment(images: Tensor, size: int, generator: torch.Generator, symmetry: str) -> Tensor:
    """Random flip, shift (7 %), zoom (10 %), brightness, contrast: bytes to [B, 3, size, size].

    Args:
        symmetry: "upright" flips left and right only, "mirror" up and down too, "dihedral" also
            turns.
    """
    n = len(images)
    zoom = 1 + 0.1 * (2 * torch.rand(n, generator=generator) - 1)
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    shift = 0.14 * (2 * torch.rand(n, 2, generator=generator) - 1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom * flip, zoom, shift
    if symmetry != "upright":
        theta[:, 1, 1] *= torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    if symmetry == "dihedral":
        turned = torch.rand(n, generator=generator) < 0.5
        theta[turned] = theta[turned][:, [1, 0]]
    x, theta = images.float() / 255, theta.to(images.device)
    grid = F.affine_grid(theta, [n, x.shape[1], size, size], align_corners=False)
    mode = "bicubic" if x.shape[-1] < size else "bilinear"
    x = F.grid_sample(x, grid, mode=mode, padding_mode="reflection", align_corners=False)
    gain = (1 + 0.1 * (2 * torch.rand(2, n, 1, 1, 1, generator=generator) - 1)).to(x.device)
    x = ((x * gain[0] - 0.5) * gain[1] + 0.5).clamp(0, 1)
    return normalise(x)


def normalise(x: Tensor) -> Tensor:
    """Colours in 0..1, [B, 1 or 3, H, W], to the model's input [B, 3, H, W]."""
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (x.expand(-1, 3, -1, -1) - mean) / std
