"""Train the small ELPV model: slim DINOv2 ViT-S into ViT-Ti, distil it, and fine-tune it.

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
    jitter_geometry,
    load_split,
    photometric,
    to_input,
)
from rich.progress import track
from slim_init import slim
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
HORIZON = 0.995  # decay of the moving average: about 200 steps, or 3.5 epochs


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
    parser.add_argument("--distil-epochs", type=int, default=18)
    parser.add_argument("--finetune-epochs", type=int, default=8)
    parser.add_argument("--distil-keep", type=int, default=98, help="patches kept, of 196")
    parser.add_argument("--finetune-keep", type=int, default=147, help="patches kept, of 196")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--finetune-lr", type=float, default=1e-4)
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


def label_loss(logits: torch.Tensor, labels: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to a blend of the class and the annotators' probability, smoothed."""
    blend = 0.5 * F.one_hot(labels, 2) + 0.5 * soft
    return F.cross_entropy(logits, 0.95 * blend + 0.025)


def feature_loss(
    predicted: torch.Tensor, wanted: torch.Tensor, deviation: torch.Tensor
) -> torch.Tensor:
    """Squared error of standardised tokens; the class token counts as much as all patches."""
    error = ((predicted - wanted) / deviation).square()
    return 0.5 * error[:, 0].mean() + 0.5 * error[:, 1:].mean()


def initialise(arguments: argparse.Namespace, train: Split) -> tuple[Student, Targets]:
    """Cache the teacher's features and slim the teacher into a student."""
    teacher = load_teacher(arguments.teacher_checkpoint)
    cache = arguments.cache_dir
    cache.mkdir(parents=True, exist_ok=True)
    images = load_split(arguments.data_dir, "train", TEACHER_SIZE).images
    views = [
        cache_view(teacher, images, view, cache / "train")[1] for view in range(arguments.views)
    ]
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
        torch.save(student.state_dict(), path)
    return student, Targets(views)


def parameter_groups(student: Student) -> list[dict]:
    """Split the parameters: no weight decay on vectors, and a faster start for the new head."""
    head = [p for p in student.vit.head.parameters()]
    rest = [p for n, p in student.named_parameters() if not n.startswith("vit.head.")]
    matrices = [p for p in rest if p.ndim > 1 and p.shape[0] > 1]
    vectors = [p for p in rest if not (p.ndim > 1 and p.shape[0] > 1)]
    return [
        {"params": matrices, "weight_decay": 0.05, "factor": 1.0},
        {"params": vectors, "weight_decay": 0.0, "factor": 1.0},
        {"params": head, "weight_decay": 0.05, "factor": 4.0},
    ]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first twentieth, then a cosine to zero."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Trainer:
    """The training state and its two phases."""

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

    def distil_loss(self, indices: torch.Tensor) -> torch.Tensor:
        """Follow the teacher's tokens and the labels on a random part of the patches."""
        views = torch.randint(self.arguments.views, (len(indices),), generator=self.generator)
        images = dihedral_batch(self.train.images[indices], views).float() / 255
        kept = self.kept(len(indices), self.arguments.distil_keep)
        logits, tokens = self.forward(to_input(photometric(images, self.generator)), kept)
        wanted = select_tokens(self.targets.batch(indices, views), kept)
        loss = feature_loss(tokens, wanted, self.targets.deviation)
        return loss + self.label_term(logits, indices)

    def finetune_loss(self, indices: torch.Tensor) -> torch.Tensor:
        """Follow the labels alone, under geometric augmentation too."""
        views = torch.randint(VIEWS, (len(indices),), generator=self.generator)
        images = dihedral_batch(self.train.images[indices], views).float() / 255
        images = photometric(jitter_geometry(images, IMAGE_SIZE, self.generator), self.generator)
        kept = self.kept(len(indices), self.arguments.finetune_keep)
        logits, _ = self.forward(to_input(images), kept)
        return self.label_term(logits, indices)

    def kept(self, count: int, keep: int) -> torch.Tensor:
        """Choose the patches to keep."""
        return random_patches(count, PATCHES, keep, self.generator)

    def label_term(self, logits: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Return the label loss of a batch."""
        return label_loss(logits, self.train.labels[indices], self.train.soft_labels[indices])

    def run_epoch(self, phase: str, first: int, epochs: int) -> float:
        """Train for one epoch of a phase that began at epoch `first`; return the mean loss."""
        loss_of = self.distil_loss if phase == "distil" else self.finetune_loss
        peak = self.arguments.lr if phase == "distil" else self.arguments.finetune_lr
        order = torch.randperm(len(self.train.labels), generator=self.generator)
        batches = [batch for batch in order.split(BATCH) if len(batch) == BATCH]
        total = 0.0
        self.student.train()
        for number, indices in enumerate(track(batches, description=f"Epoch {self.epoch}")):
            step = (self.epoch - first) * len(batches) + number
            rate = learning_rate(step, epochs * len(batches), peak)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            loss = loss_of(indices)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
            self.optimizer.step()
            self.average.update(self.student)
            total += float(loss.detach())
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
    distil, total = arguments.distil_epochs, arguments.distil_epochs + arguments.finetune_epochs
    while trainer.epoch < total:
        if trainer.epoch < distil:
            loss = trainer.run_epoch("distil", 0, distil)
        else:
            loss = trainer.run_epoch("finetune", distil, arguments.finetune_epochs)
        trainer.save(checkpoint)
        save_student(trainer.average.model.vit, arguments.output)
        accuracy, entropy = validate(load_student(arguments.output), val)
        record = {"epoch": trainer.epoch, "loss": loss, "val_accuracy": accuracy, "val_ce": entropy}
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
