"""What a fine-tuning run is made of beside its loop: optimiser, learning rates, saved state."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from slimdeploy.console import note
from slimdeploy.errors import InputError, MissingError, one_line
from slimdeploy.files import atomic_path
from slimdeploy.slim.options import FinetuneOptions
from slimdeploy.slim.types import Vit

SAVE_SECONDS = 300.0


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


def make_scheduler(
    optimiser: torch.optim.Optimizer, options: FinetuneOptions, steps: int, per_epoch: int
) -> Scheduler:
    """A cosine over `steps` steps after a warm-up, counted in steps."""
    scheduler, _ = create_scheduler_v2(
        optimiser,
        sched="cosine",
        num_epochs=steps,
        warmup_epochs=min(round(options.warmup_epochs * per_epoch), steps - 1),
        min_lr=options.lr / 100,
        warmup_lr=min(1e-5, options.lr / 10),
        updates_per_epoch=1,
        step_on_epochs=False,
    )
    return scheduler


def check_device(name: str) -> None:
    """Refuse a device that torch does not know or this machine does not have.

    Raises:
        InputError: for a name that is no device, or one that computes nothing.
        MissingError: for a device that this machine, or the installed torch, does not have.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: not a torch device, as cpu or cuda") from error
    if device.type == "meta":
        raise InputError(f"--device {name}: computes nothing; give cpu or cuda")
    if device.type == "cuda":  # asked so that processes leave the first GPU to the first one
        there = torch.cuda.device_count()
        if (device.index or 0) >= there:
            seen = f"{there} CUDA devices" if there else "no CUDA device"
            raise MissingError(f"--device {name}: torch sees {seen}; use --device cpu")
    elif device.type != "cpu":
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError, ImportError) as error:  # each kind has its own
            raise MissingError(
                f"--device {name}: torch has none on this machine; use --device cpu"
            ) from error


@dataclass
class StateFile:
    """Where an unfinished run is kept, and when it is saved again.

    Attributes:
        path: the file; None to keep none.
        identity: what must be equal for the run to be continued.
        every: steps between savings; None for `SAVE_SECONDS`.
    """

    path: Path | None
    identity: str
    every: int | None = None
    saved_at: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        """Whether a run that has made `step` steps should be saved now."""
        if self.every is not None:
            return step % self.every == 0
        return time.monotonic() - self.saved_at > SAVE_SECONDS

    def save(self, state: dict[str, Any]) -> None:
        """Write a run's state, whole or not at all."""
        if self.path is None:
            return
        try:
            with atomic_path(self.path) as path:
                torch.save({"identity": self.identity, **state}, path)
        except (OSError, RuntimeError) as error:  # torch's writer says neither why nor where
            free = shutil.disk_usage(self.path.parent).free >> 20
            raise InputError(
                f"{self.path}: the unfinished run cannot be saved, {free} MB are free there; "
                "make room and give the same command again"
            ) from error
        self.saved_at = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The unfinished run's state; None if there is none, or it is unreadable.

        Raises:
            InputError: if it is another run's, whose hours of work are not to be overwritten.
        """
        if self.path is None or not self.path.is_file():
            return None
        try:
            state = dict(torch.load(self.path, weights_only=True, map_location="cpu"))
        except Exception as error:  # pickle raises whatever the bytes spell
            note(f"{self.path}: unreadable ({one_line(error, 80)}); starting anew")
            return None
        if state.get("identity") != self.identity:
            raise InputError(
                f"{self.path}: is an unfinished run of other options, weights or images; finish it "
                "with its own command, choose another --output, or remove the file"
            )
        return state

    def remove(self) -> None:
        """The run's result has been written: remove the file, and what killed savings left."""
        if self.path is not None:
            left = self.path.parent.glob(f".{self.path.stem}.*{self.path.suffix}")
            for path in (self.path, *left):
                path.unlink(missing_ok=True)
