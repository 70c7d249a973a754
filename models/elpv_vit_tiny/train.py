"""Train the small ELPV model: slim DINOv2 ViT-S into ViT-Ti, then distil and fine-tune it.

    python tools/prepare_elpv.py --output build/elpv
    python models/elpv_vit_tiny/train.py --data-dir build/elpv \
        --output models/elpv_vit_tiny/model.safetensors --seed 0

The teacher comes from timm (`pretrained=True`) unless --teacher-checkpoint names a local file.
Everything that takes long is kept in --cache-dir, so an interrupted run resumes where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import (
    VIEWS,
    Split,
    dihedral_batch,
    load_split,
    photometric,
    to_input,
)
from rich.progress import track
from slim_init import slim, standardise_norms
from student import (
    IMAGE_SIZE,
    MovingAverage,
    Student,
    load_student,
    random_patches,
    save_student,
    select_tokens,
)
from teacher import IMAGE_SIZE as TEACHER_SIZE
from teacher import cache_view, load_teacher
from torch import nn

PATCHES = 196
BATCH = 32
HORIZON = 0.98  # decay of the moving average: about 50 steps, or one epoch
HEAD_DECAY = 1e-3
WEIGHT_DECAY = 1e-3  # per unit of relative learning rate
SCALES = (1e-4, 0.1)  # bounds of the magnitude that a learning rate is relative to


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(description="Train the small ELPV model.")
    parser.add_argument("--data-dir", type=Path, required=True, help="from tools/prepare_elpv.py")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--teacher-checkpoint", type=Path, help="local weights of the teacher")
    parser.add_argument("--cache-dir", type=Path, default=Path("build/elpv_vit_tiny"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--views", type=int, default=4, help="symmetry views of teacher features")
    parser.add_argument("--init-images", type=int, default=192)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--keep", type=int, default=PATCHES, help="patches kept per step, of 196")
    parser.add_argument("--lr", type=float, default=4e-4, help="relative to each weight's size")
    return parser


class Targets:
    """Cached teacher tokens of the training photographs under several symmetries."""

    def __init__(self, views: list[np.ndarray]) -> None:
        """Keep the memory maps and the spread of each channel over a sample."""
        self.views = views
        sample = torch.from_numpy(views[0][::8].astype(np.float32))
        self.deviation = sample.std(dim=(0, 1))

    def batch(self, indices: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        """Return the tokens `[n, 197, 384]` of photographs under their symmetries."""
        pairs = zip(indices.tolist(), views.tolist(), strict=True)
        return torch.from_numpy(np.stack([self.views[view][row] for row, view in pairs])).float()


def blended(labels: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """Return the mean of the class (as one-hot) and the annotators' probability."""
    return 0.5 * F.one_hot(labels, 2) + 0.5 * soft


def label_loss(logits: torch.Tensor, labels: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to a blend of the class and the annotators' probability, smoothed."""
    return F.cross_entropy(logits, 0.95 * blended(labels, soft) + 0.025)


def feature_loss(
    predicted: torch.Tensor, wanted: torch.Tensor, deviation: torch.Tensor
) -> torch.Tensor:
    """Squared error of standardised tokens; the class token counts as much as all patches."""
    error = ((predicted - wanted) / deviation).square()
    return 0.5 * error[:, 0].mean() + 0.5 * error[:, 1:].mean()


def class_tokens(student: Student, images: torch.Tensor) -> torch.Tensor:
    """Return the normalised class tokens of clean photographs."""
    student.eval()
    batches = track(images.split(BATCH), description="Class tokens")
    with torch.no_grad():
        return torch.cat([student.vit.forward_features(to_input(b))[:, 0] for b in batches])


def fit_head(student: Student, train: Split) -> None:
    """Fit the classification head to frozen class tokens by logistic regression."""
    tokens = class_tokens(student, train.images)
    mean, deviation = tokens.mean(dim=0), tokens.std(dim=0)
    inputs = (tokens - mean) / deviation
    goal = blended(train.labels, train.soft_labels)
    weight = torch.zeros(2, inputs.shape[1], requires_grad=True)
    bias = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(inputs, weight, bias), goal)
        loss = loss + 2 * HEAD_DECAY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    scaled = weight.detach() / deviation
    student.vit.head.weight.data.copy_(scaled)
    student.vit.head.bias.data.copy_(bias.detach() - scaled @ mean)


def initialise(arguments: argparse.Namespace, train: Split) -> tuple[Student, Targets]:
    """Cache the teacher's features and slim the teacher into a student."""
    teacher = load_teacher(arguments.teacher_checkpoint)
    cache = arguments.cache_dir
    cache.mkdir(parents=True, exist_ok=True)
    images = load_split(arguments.data_dir, "train", TEACHER_SIZE).images
    views = [cache_view(teacher, images, view, cache / "train") for view in range(arguments.views)]
    student = Student(teacher.embed_dim)
    path = cache / f"init.seed{arguments.seed}.pt"
    if path.exists():
        student.load_state_dict(torch.load(path))
    else:
        generator = torch.Generator().manual_seed(arguments.seed)
        chosen = torch.randperm(len(images), generator=generator)[: arguments.init_images]
        turns = torch.randint(VIEWS, (len(chosen),), generator=generator)
        weight, bias = slim(
            teacher,
            student.vit,
            dihedral_batch(images[chosen], turns),
            dihedral_batch(train.images[chosen], turns),
        )
        student.to_teacher.weight.data.copy_(weight)
        student.to_teacher.bias.data.copy_(bias)
        fit_head(student, train)
        standardise_norms(student.vit, student.to_teacher, train.images[chosen[:64]])
        torch.save(student.state_dict(), path)
    return student, Targets(views)


def parameter_groups(student: Student) -> list[dict]:
    """Make one group per parameter, with a learning rate relative to its initial magnitude.

    The slimmed weights keep the teacher's scales (folded layer scales, small early stream), which
    span two orders of magnitude: one absolute learning rate would wreck the small ones.
    """
    groups = []
    for parameter in student.parameters():
        matrix = parameter.ndim > 1 and parameter.shape[0] > 1
        magnitude = float(parameter.detach().square().mean().sqrt())
        scale = min(max(magnitude, SCALES[0]), SCALES[1])
        decay = WEIGHT_DECAY / scale if matrix else 0.0
        groups.append({"params": [parameter], "scale": scale, "weight_decay": decay})
    return groups


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first tenth, then a cosine to zero."""
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Trainer:
    """The training state and its loop."""

    def __init__(
        self, arguments: argparse.Namespace, train: Split, student: Student, targets: Targets
    ) -> None:
        """Set up the optimiser, the moving average and the random generator."""
        self.arguments, self.train, self.student, self.targets = arguments, train, student, targets
        self.generator = torch.Generator().manual_seed(arguments.seed + 1)
        self.average = MovingAverage(student, HORIZON)
        self.optimizer = torch.optim.AdamW(parameter_groups(student), lr=0.0, betas=(0.9, 0.98))
        self.forward: Callable = torch.compile(student, dynamic=False)
        self.epoch = 0

    def loss(self, indices: torch.Tensor) -> torch.Tensor:
        """Follow the teacher's tokens and the labels on a random part of the patches."""
        views = torch.randint(self.arguments.views, (len(indices),), generator=self.generator)
        images = dihedral_batch(self.train.images[indices], views).float() / 255
        images = to_input(photometric(images, self.generator))
        kept = random_patches(len(indices), PATCHES, self.arguments.keep, self.generator)
        logits, tokens = self.forward(images, kept)
        wanted = select_tokens(self.targets.batch(indices, views), kept)
        labels, soft = self.train.labels[indices], self.train.soft_labels[indices]
        distilled = feature_loss(tokens, wanted, self.targets.deviation)
        return distilled + label_loss(logits, labels, soft)

    def step(self, indices: torch.Tensor, rate: float) -> float:
        """Take one optimiser step and return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        loss = self.loss(indices)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.student)
        return float(loss.detach())

    def run_epoch(self) -> float:
        """Train for one epoch; return the mean loss."""
        order = torch.randperm(len(self.train.labels), generator=self.generator)
        batches = [batch for batch in order.split(BATCH) if len(batch) == BATCH]
        total = 0.0
        self.student.train()
        for number, indices in enumerate(track(batches, description=f"Epoch {self.epoch + 1}")):
            step, steps = self.epoch * len(batches) + number, self.arguments.epochs * len(batches)
            total += self.step(indices, learning_rate(step, steps, self.arguments.lr))
        self.epoch += 1
        return total / len(batches)

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically."""
        state = {
            "epoch": self.epoch,
            "student": self.student.state_dict(),
            "average": self.average.model.state_dict(),
            "steps": self.average.steps,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint."""
        state = torch.load(path)
        self.epoch, self.average.steps = state["epoch"], state["steps"]
        self.student.load_state_dict(state["student"])
        self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])


@torch.inference_mode()
def validate(vit: nn.Module, split: Split) -> tuple[float, float]:
    """Return accuracy and cross-entropy on a split."""
    logits = torch.cat([vit(to_input(batch)) for batch in split.images.split(BATCH)])
    accuracy = (logits.argmax(dim=1) == split.labels).float().mean()
    return float(accuracy), float(F.cross_entropy(logits, split.labels))


def report(trainer: Trainer, output: Path, val: Split, loss: float | None) -> None:
    """Store the averaged weights and validate them as stored."""
    save_student(trainer.average.model.vit, output)
    accuracy, entropy = validate(load_student(output), val)
    record = {"epoch": trainer.epoch, "loss": loss, "val_accuracy": accuracy, "val_ce": entropy}
    print(json.dumps(record), flush=True)


def main() -> None:
    """Train, validating the stored weights as they are: the test split is never read."""
    arguments = build_parser().parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    train = load_split(arguments.data_dir, "train", IMAGE_SIZE)
    val = load_split(arguments.data_dir, "val", IMAGE_SIZE)
    trainer = Trainer(arguments, train, *initialise(arguments, train))
    checkpoint = arguments.cache_dir / f"train.seed{arguments.seed}.pt"
    if checkpoint.exists():
        trainer.restore(checkpoint)
    if trainer.epoch == 0:
        report(trainer, arguments.output, val, None)
    while trainer.epoch < arguments.epochs:
        loss = trainer.run_epoch()
        trainer.save(checkpoint)
        report(trainer, arguments.output, val, loss)


if __name__ == "__main__":
    main()
