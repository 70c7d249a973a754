"""Photographs as in-memory tensors, and augmentations as batched tensor operations.

The whole data set is small (2,624 grey photographs), so everything is decoded and resized once;
no data-loader workers are needed.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import track
from timm.data import create_transform
from torchvision.datasets import ImageFolder

MEAN = STD = (0.5, 0.5, 0.5)
CROP_PCT = 1.0  # cracks often touch the cell border, so nothing is cropped away
INTERPOLATION = "bicubic"
VIEWS = 8  # the symmetries of a square: 4 rotations, each with or without a mirror


class Split(NamedTuple):
    """One split: grey images as uint8 `[n, size, size]`, class indices and soft labels `[n, 2]`."""

    images: torch.Tensor
    labels: torch.Tensor
    soft_labels: torch.Tensor


def load_split(data_dir: Path, name: str, size: int) -> Split:
    """Load one split, resized exactly as timm's evaluation transform resizes it."""
    transform = create_transform(
        (3, size, size),
        is_training=False,
        interpolation=INTERPOLATION,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        crop_pct=CROP_PCT,
        crop_mode="center",
    )
    folder = ImageFolder(str(data_dir / name))
    if folder.classes != ["defective", "functional"]:
        raise ValueError(f"{data_dir / name} must hold the folders defective/ and functional/")
    images = torch.empty(len(folder), size, size, dtype=torch.uint8)
    for index in track(range(len(folder)), description=f"Loading {name} at {size} px"):
        # The photographs are grey: the three channels are equal, so one is kept.
        images[index] = (transform(folder[index][0])[0] * 255).round().to(torch.uint8)
    defect = _defect_probabilities(data_dir)
    probabilities = torch.tensor([defect[Path(path).name] for path, _ in folder.samples])
    soft_labels = torch.stack([probabilities, 1 - probabilities], dim=1)
    return Split(images, torch.tensor(folder.targets), soft_labels)


def _defect_probabilities(data_dir: Path) -> dict[str, float]:
    """Read the annotators' defect probabilities from `labels.csv`."""
    with (data_dir / "labels.csv").open(encoding="utf-8", newline="") as handle:
        return {row["file"]: float(row["probability"]) for row in csv.DictReader(handle)}


def dihedral(images: torch.Tensor, view: int) -> torch.Tensor:
    """Apply symmetry `view` (0 is the identity) to the last two axes."""
    # Views 0-3 are flips only: cells are photographed upright, so these are the likeliest ones.
    if view & 1:
        images = images.flip(-1)
    if view & 2:
        images = images.flip(-2)
    if view & 4:
        images = images.transpose(-1, -2)
    return images


def dihedral_batch(images: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """Apply a symmetry of its own to each image of a batch."""
    return torch.stack(
        [dihedral(image, int(view)) for image, view in zip(images, views, strict=True)]
    )


def to_input(images: torch.Tensor, mean: float = MEAN[0], std: float = STD[0]) -> torch.Tensor:
    """Turn grey images in [0, 1] (or uint8) into a normalised three-channel batch."""
    if images.dtype == torch.uint8:
        images = images.float() / 255
    return ((images - mean) / std).unsqueeze(1).expand(-1, 3, -1, -1)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=generator).mul_(high - low).add_(low)


def photometric(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vary gamma, contrast and brightness mildly; images are in [0, 1].

    Mildly, because the slimmed student is fitted to clean photographs and trains only briefly.
    """
    count = len(images)
    gamma = torch.exp(_uniform(count, -0.1, 0.1, generator)).view(-1, 1, 1)
    contrast = _uniform(count, 0.9, 1.1, generator).view(-1, 1, 1)
    brightness = _uniform(count, -0.03, 0.03, generator).view(-1, 1, 1)
    images = images.clamp_min(1e-4).pow(gamma)
    centre = images.mean(dim=(1, 2), keepdim=True)
    return ((images - centre) * contrast + centre + brightness).clamp_(0, 1)
