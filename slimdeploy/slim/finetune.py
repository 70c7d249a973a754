"""End-to-end fine-tuning of a slim model, with distillation from its dense self.

timm's transforms, loader, optimiser, schedule, average and task; one resumable loop here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from slimdeploy import __version__
from slimdeploy.console import note, progress_bar
from slimdeploy.errors import GateError, InputError, MissingError, one_line
from slimdeploy.files import atomic_path
from slimdeploy.images import ImageFolder, read_image
from slimdeploy.preprocessing import Preprocessing, to_rgb
from slimdeploy.schedule import KeepSchedule
from slimdeploy.slim.model import SlimVit
from slimdeploy.slim.recovery import ReadTokens, RecoveryTask
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


@dataclass
class Finetuner:
    """One fine-tuning run: `run()` returns the averaged weights in a dense timm model.

    Args:
        dense: teacher, with the original weights; never changed.
        start: the weights to begin from (refit ones, or the dense model's); copied.
        data: labelled training images.
        state_path: where an unfinished run is kept; None to keep none.
        evaluate: called after each epoch with the averaged slim model; what it returns is logged.
    """

    dense: Vit
    start: Vit
    schedule: KeepSchedule
    data: ImageFolder
    preprocessing: Preprocessing
    options: FinetuneOptions = field(default_factory=FinetuneOptions)
    state_path: Path | None = None
    evaluate: Callable[[nn.Module], str] | None = None

    def __post_init__(self) -> None:
        options, device = self.options, torch.device(self.options.device)
        torch.manual_seed(options.seed)
        self.student = copy.deepcopy(self.start).to(device)
        slim = SlimVit(self.student, self.schedule.keep).to(device)
        self.model = ReadTokens(slim, len(self.schedule.model.head_reads))
        self.task = RecoveryTask(
            self.model,
            copy.deepcopy(self.dense).to(device),
            options.feature_weight,
            criterion=LabelSmoothingCrossEntropy(options.smoothing),
            distill_loss_weight=options.distill_loss_weight,
            temperature=options.kd_temperature,
            device=device,
        )
        self.optimiser = make_optimiser(self.student, options)
        self.ema = ModelEmaV3(self.student, decay=options.ema_decay, use_warmup=True)
        self.identity = self._identity() if self.state_path is not None else ""
        self.loader = make_loader(self.data, self.preprocessing, options)
        self.schedule_lr, _ = create_scheduler_v2(
            self.optimiser,
            sched="cosine",
            num_epochs=options.epochs,
            warmup_epochs=options.warmup_epochs,
            min_lr=options.lr / 100,
            updates_per_epoch=len(self.loader),
            step_on_epochs=False,
        )

    def run(self) -> Vit:
        """Train, resuming an unfinished run of the same settings; the averaged weights."""
        first = self._resume()
        for epoch in range(first, self.options.epochs):
            seed_epoch(self.options.seed, epoch)
            loss = self._epoch(epoch)
            if not math.isfinite(loss):
                raise GateError(f"the loss is {loss} in epoch {epoch + 1}; try a lower --lr")
            self._save(epoch + 1)
            result = self.evaluate(self._averaged_slim()) if self.evaluate else ""
            note(f"epoch {epoch + 1}/{self.options.epochs}  loss {loss:.4f}  {result}")
        averaged: nn.Module = self.ema.module
        return averaged.eval().cpu()

    def finished(self) -> None:
        """Remove the unfinished run's file: its result has been written."""
        if self.state_path is not None:
            self.state_path.unlink(missing_ok=True)

    def _epoch(self, epoch: int) -> float:
        self.task.train()
        total, updates = 0.0, epoch * len(self.loader)
        with progress_bar() as progress:
            bar = progress.add_task(f"fine-tuning, epoch {epoch + 1}", total=len(self.loader))
            for images, target in self._batches():
                total += self._step(images, target)
                updates += 1
                self.schedule_lr.step_update(num_updates=updates)
                self.ema.update(self.student, step=updates)
                progress.advance(bar)
        return total / len(self.loader)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            yield from self.loader
        except InputError as error:
            last = str(error).strip().splitlines()[-1]
            if last == str(error):
                raise
            # A worker's error arrives with its traceback as text.
            raise InputError(last.partition("Error: ")[2]) from None

    def _step(self, images: Tensor, target: Tensor) -> float:
        device = self.options.device
        loss = self.task(images.to(device), target.to(device))["loss"]
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), self.options.clip_grad)
        self.optimiser.step()
        return float(loss.detach())

    def _averaged_slim(self) -> Vit:
        return SlimVit(self.ema.module, self.schedule.keep).eval().to(self.options.device)

    def _identity(self) -> str:
        """What must be equal for an unfinished run to be continued."""
        identity = {
            **asdict(self.options),
            "schedule": self.schedule.digest,
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "data": self.data.digest(),
            "teacher": weights_digest(self.dense),
            "start": weights_digest(self.start),
            "slimdeploy": __version__,
        }
        del identity["workers"], identity["device"]  # these may change between runs
        return json.dumps(identity, sort_keys=True)

    def _save(self, epoch: int) -> None:
        if self.state_path is None:
            return
        state = {
            "identity": self.identity,
            "epoch": epoch,
            "student": self.student.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        with atomic_path(self.state_path) as path:
            torch.save(state, path)

    def _resume(self) -> int:
        if self.state_path is None or not self.state_path.is_file():
            return 0
        state = read_state(self.state_path)
        if state.get("identity") != self.identity:
            note(f"{self.state_path}: is of another run; starting anew")
            return 0
        self.student.load_state_dict(state["student"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule_lr.step_update(num_updates=state["epoch"] * len(self.loader))
        note(f"{self.state_path}: going on after epoch {state['epoch']}")
        return int(state["epoch"])


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
