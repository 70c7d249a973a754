"""End-to-end fine-tuning of a slim model, with distillation from its dense self.

timm's transforms, optimiser, schedule, average and task; one resumable loop here. A step depends on
the seed, its number and the weights before it, on nothing else: a run that is killed and goes on
ends, on one device, in the same bits.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from slimdeploy import __version__
from slimdeploy.console import note, progress_bar
from slimdeploy.errors import GateError, InputError
from slimdeploy.images import ImageFolder
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule
from slimdeploy.slim.checkpoint import weights_digest
from slimdeploy.slim.dynamic import slim_of
from slimdeploy.slim.loading import Plan, PlannedBatches, make_loader, readable_errors, seed_all
from slimdeploy.slim.options import FinetuneOptions
from slimdeploy.slim.recovery import RecoveryTask, SlimTokens
from slimdeploy.slim.streams import compared_layers
from slimdeploy.slim.training import (
    StateFile,
    check_device,
    make_optimiser,
    make_scheduler,
)
from slimdeploy.slim.types import Vit
from slimdeploy.slim.world import World


@dataclass
class Finetuner:
    """One fine-tuning run: `run()` returns the averaged weights in a dense timm model.

    Args:
        dense: teacher, with the original weights; never changed.
        start: the weights to begin from (refit ones, or the dense model's); copied.
        data: training images; their labels are read only if they have a weight.
        state_path: where an unfinished run is kept; None to keep none.
        evaluate: called at the start and after each epoch with the averaged slim model; what it
            returns is logged.
        make_slim: makes the slim model from a dense one, which it holds as `.dense`; it has timm's
            `forward_features` and `forward_head`, and may have parameters of its own.
        world: the processes that train together (default: this one alone).
    """

    dense: Vit
    start: Vit
    schedule: KeepSchedule
    data: ImageFolder
    preprocessing: Preprocessing
    options: FinetuneOptions = field(default_factory=FinetuneOptions)
    state_path: Path | None = None
    evaluate: Callable[[nn.Module], str] | None = None
    make_slim: Callable[[Vit, KeepSchedule], Any] = slim_of
    world: World | None = None

    def __post_init__(self) -> None:
        options = self.options
        if self.world is None:
            check_device(options.device)
        self.here = self.world or World(torch.device(options.device))
        self.plan = Plan.of(len(self.data), options)
        if self.plan.batch_size < options.batch_size and self.here.leads:
            there = len(self.data)
            note(
                f"{self.data.root}: {there} images there: a batch has {there}, not the asked "
                f"{options.batch_size}"
            )
        self.here.check_batch(self.plan.batch_size)
        self.steps = options.steps(self.plan.per_epoch)
        seed_all(options.seed)  # a slim model may draw parameters of its own
        self.slim = self.make_slim(copy.deepcopy(self.start), self.schedule).to(self.here.device)
        self.student: Vit = self.slim.dense
        self.optimiser = make_optimiser(self.student, options)
        self._add_own_parameters()
        self.scheduler = make_scheduler(self.optimiser, options, self.steps, self.plan.per_epoch)
        self.scaler = torch.amp.GradScaler(
            self.here.device.type, enabled=options.amp_dtype == "float16"
        )
        self.ema = ModelEmaV3(self.slim, decay=options.ema_decay, use_warmup=True)
        self.task = self._make_task()
        identity = "" if self.state_path is None else self.here.of_first(self._identity)
        path = self.state_path if self.here.leads else None
        self.file = StateFile(path, identity, options.save_every)

    def _add_own_parameters(self) -> None:
        known = {id(parameter) for parameter in self.student.parameters()}
        own = [p for p in self.slim.parameters() if id(p) not in known]
        if own:
            self.optimiser.add_param_group(
                {"params": own, "lr": self.options.lr, "weight_decay": self.options.weight_decay}
            )

    def _make_task(self) -> RecoveryTask:
        options, device, layers = self.options, self.here.device, tuple[int, ...]()
        if options.token_weight:
            layers = compared_layers(self.schedule, options.token_layers)
        learns = options.task_loss_weight or options.feature_weight or options.token_weight
        if not (self.schedule.model.num_classes or learns):
            raise InputError(
                "--distill-loss-weight: the model has no classes to tell apart; give "
                "--feature-weight or --token-weight"
            )
        task = RecoveryTask(
            SlimTokens(self.slim, len(self.schedule.model.head_reads), layers),
            copy.deepcopy(self.dense).to(device),
            options.feature_weight,
            options.amp_dtype,
            kept={layer: self.schedule.keep[layer - 1] for layer in layers},
            token_weight=options.token_weight,
            criterion=LabelSmoothingCrossEntropy(options.smoothing),
            task_loss_weight=options.task_loss_weight,
            distill_loss_weight=options.distill_loss_weight,
            temperature=options.kd_temperature,
            device=device,
        )
        if self.here.size > 1:
            ids = [device.index] if device.type == "cuda" else None
            task.prepare_distributed(ids, broadcast_buffers=False)
        task.train()
        return task

    def run(self) -> Vit:
        """Train, resuming an unfinished run of the same settings; the averaged weights.

        Raises:
            GateError: if the loss is no number; then no unfinished run is left.
        """
        try:
            return self._run(self._resume())
        except GateError:
            self.file.remove()  # gone on from there, it would end like this again
            raise

    def _run(self, first: int) -> Vit:
        mine = PlannedBatches(self.plan, first, self.steps, self.here.rank, self.here.size)
        loader = make_loader(self.data, self.preprocessing, self.options, mine)
        losses: list[float] = []
        if first == 0 and self.evaluate and self.here.leads:
            note(f"before training: {self.evaluate(self.ema.module.eval())}")
        with progress_bar() as progress:
            bar = progress.add_task("fine-tuning", total=self.steps, completed=first)
            for done, (images, target) in enumerate(readable_errors(loader), start=first + 1):
                losses.append(self._step(done, images, target))
                progress.advance(bar)
                if done == self.steps:
                    self._check_last(images, target)
                ends = done % self.plan.per_epoch == 0 or done == self.steps
                if ends or self.file.due(done):
                    self._save(done)
                if ends:
                    self._report(done, sum(losses) / len(losses))
                    losses.clear()
        averaged: Vit = self.ema.module.dense
        return averaged.eval().cpu()

    def finished(self) -> None:
        """Remove the unfinished run's file: its result has been written."""
        self.file.remove()

    def _step(self, step: int, images: Tensor, target: Tensor) -> float:
        """Make step number `step`, from 1, on this process's share of the batch; its loss."""
        device = self.here.device
        seed_all(self.options.seed, step, self.here.rank)
        loss = self.task(images.to(device), target.to(device))["loss"]
        value = self.here.mean(loss)
        if not math.isfinite(value):
            epoch = (step - 1) // self.plan.per_epoch + 1
            raise GateError(f"the loss is {value} in epoch {epoch}; try a lower --lr")
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.slim.parameters(), self.options.clip_grad)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.scheduler.step_update(num_updates=step)
        self.ema.update(self.slim, step=step)
        return value

    @torch.no_grad()
    def _check_last(self, images: Tensor, target: Tensor) -> None:
        """Refuse what the last step made: every other one is judged by the loss after it."""
        device = self.here.device
        value = self.here.mean(self.task(images.to(device), target.to(device))["loss"])
        if not math.isfinite(value):
            raise GateError(f"the loss is {value} after the last step; try a lower --lr")

    def _report(self, step: int, loss: float) -> None:
        if not self.here.leads:
            return
        result = self.evaluate(self.ema.module.eval()) if self.evaluate else ""
        epochs = f"{step / self.plan.per_epoch:.3g}/{self.steps / self.plan.per_epoch:.3g}"
        note(f"epoch {epochs}, step {step}/{self.steps}  loss {loss:.4f}  {result}")

    def _identity(self) -> str:
        """What must be equal for an unfinished run to be continued."""
        identity = {
            **self.options.identity(),
            "schedule": self.schedule.digest,
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "data": self.data.digest(),
            "teacher": weights_digest(self.dense),
            "start": weights_digest(self.start),
            "slimdeploy": __version__,
        }
        return json.dumps(identity, sort_keys=True)

    def _save(self, step: int) -> None:
        state = {
            "step": step,
            "slim": self.slim.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        self.file.save(state)

    def _resume(self) -> int:
        """Load an unfinished run; the steps it had made."""
        state = self.here.of_first(self.file.read)
        if state is None:
            return 0
        self.slim.load_state_dict(state["slim"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        step = int(state["step"])
        self.scheduler.step_update(num_updates=step)
        if self.here.leads:
            note(f"{self.state_path}: going on after step {step} of {self.steps}")
        return step
