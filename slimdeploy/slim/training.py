"""What a fine-tuning run is made of: options, data loader, optimiser, seeds, saved state."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_loader
from timm.optim import create_optimizer_v2

from slimdeploy.console import note
from slimdeploy.errors import InputError, MissingError, one_line
from slimdeploy.images import ImageFolder, read_image
from slimdeploy.preprocessing import Preprocessing, to_rgb
from slimdeploy.slim.types import Vit


@dataclass(frozen=True)
class FinetuneOptions:
    """Hyper-parameters, named as in timm's training script where it has them."""

    epochs: int = 5
    batch_size: int = 32
    relative_lr: bool = False
    lr: float = 2e-4
    weight_decay: float = 0.05
    layer_decay: float = 0.8
    warmup_epochs: float = 0.1
    smoothing: float = 0.1
    clip_grad: float = 1.0
    distill_loss_weight: float = 1.0
    kd_temperature: float = 2.0
    feature_weight: float = 2.0
    ema_decay: float = 0.98
    scale: tuple[float, float] = (0.7, 1.0)
    ratio: tuple[float, float] = (0.9, 1.1)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.2
    workers: int = 2
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "workers": 0, "seed": 0, "warmup_epochs": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {getattr(self, name)}: must be at least {smallest}")
        if not 0 <= self.smoothing < 1:
            raise InputError(f"--smoothing {self.smoothing}: must be at least 0 and below 1")
        for name in ("lr", "kd_temperature", "layer_decay"):
            if not getattr(self, name) > 0:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {getattr(self, name)}: must be above 0")
        check_device(self.device)


def make_optimiser(model: Vit, options: FinetuneOptions) -> torch.optim.Optimizer:
    """AdamW, its steps absolute and decaying with depth, or in proportion to each parameter."""
    if not options.relative_lr:
        optimiser: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt="adamw",
            lr=options.lr,
            weight_decay=options.weight_decay,
            layer_decay=options.layer_decay,
        )
        return optimiser
    groups = []
    for parameter in model.parameters():
        size = float(parameter.detach().square().mean().sqrt().clamp(1e-4, 1.0))
        # Decay pulls on a matrix alike, whatever its scale; timm's schedulers apply `lr_scale`.
        decay = options.weight_decay if parameter.ndim > 1 else 0.0
        groups.append({"params": [parameter], "lr_scale": size, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98))


class TrainingImages(torch.utils.data.Dataset[tuple[Any, int]]):
    """An `ImageFolder` as a torch data set; timm's loader sets `transform`."""

    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder
        self.transform: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file = self.folder.files[index]
        try:
            image = to_rgb(read_image(file))
        except InputError as error:
            raise InputError(
                str(error) if str(file) in str(error) else f"{file}: {error}"
            ) from error
        return (self.transform(image) if self.transform else image), self.folder.labels[index]


def make_loader(data: ImageFolder, preprocessing: Preprocessing, options: FinetuneOptions) -> Any:
    """timm's training loader with the model's own normalisation and interpolation."""
    return create_loader(
        TrainingImages(data),
        input_size=preprocessing.input_size,
        batch_size=min(options.batch_size, len(data)),
        is_training=True,
        use_prefetcher=False,
        scale=options.scale,
        ratio=options.ratio,
        hflip=options.hflip,
        vflip=options.vflip,
        color_jitter=options.color_jitter,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        num_workers=options.workers,
        persistent_workers=False,  # new workers an epoch: a resumed epoch draws the same numbers
        pin_memory=False,
    )


def check_device(name: str) -> None:
    """Refuse a device that torch does not know or this machine does not have.

    Raises:
        InputError: for a name that is no device.
        MissingError: for a CUDA device where there is none.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: not a torch device, as cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MissingError(f"--device {name}: torch sees no CUDA device; use --device cpu")


def weights_digest(model: Vit) -> str:
    """SHA-256 over a model's weights, in order."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def read_state(path: Path) -> dict[str, Any]:
    """An unfinished run's state; empty if it cannot be read, so that the run starts anew."""
    try:
        return dict(torch.load(path, weights_only=True, map_location="cpu"))
    except Exception as error:  # pickle raises whatever the bytes spell
        note(f"{path}: unreadable ({one_line(error, 80)})")
        return {}


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed every generator that augmentation and shuffling draw from, per epoch, for resuming."""
    value = (seed * 100003 + epoch) % 2**32
    random.seed(value)
    np.random.seed(value)  # timm's transforms draw from the global generator
    torch.manual_seed(value)
