"""End-to-end fine-tuning of a slim model, with distillation from its dense self.

timm's transforms, loader, optimiser, schedule, average and task; one resumable loop here.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from slimdeploy import __version__
from slimdeploy.console import note, progress_bar
from slimdeploy.errors import GateError, InputError
from slimdeploy.files import atomic_path
from slimdeploy.images import ImageFolder
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule
from slimdeploy.slim.model import SlimVit
from slimdeploy.slim.recovery import ReadTokens, RecoveryTask
from slimdeploy.slim.training import (
    FinetuneOptions,
    make_loader,
    make_optimiser,
    read_state,
    seed_epoch,
    weights_digest,
)
from slimdeploy.slim.types import Vit


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
