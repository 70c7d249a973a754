"""Training batches that depend on (seed, step) alone, so that a run goes on from any step.

timm's transforms in torch's loader: timm's own `create_loader` cannot start in the middle of an
epoch, and its augmentation draws on from whatever its workers drew before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from slimdeploy.engine.host import usable_cores
from slimdeploy.errors import InputError
from slimdeploy.images import ImageFolder, read_image
from slimdeploy.preprocessing import Preprocessing, to_rgb
from slimdeploy.slim.options import FinetuneOptions


@dataclass(frozen=True)
class Plan:
    """Which images each step sees.

    Attributes:
        images: how many there are.
        batch_size: images a step, over all processes.
        seed: of the orders.
    """

    images: int
    batch_size: int
    seed: int

    @classmethod
    def of(cls, images: int, options: FinetuneOptions) -> Plan:
        """The plan for `images` images."""
        return cls(images, min(options.batch_size, images), options.seed)

    @property
    def per_epoch(self) -> int:
        """Steps a pass; a rest too small for a batch is left out, another one each time."""
        return self.images // self.batch_size

    def batch(self, step: int) -> list[tuple[int, int]]:
        """(epoch, image) of every image of a step, in order."""
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.images)
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        return [(epoch, int(index)) for index in chosen]


class PlannedBatches(Sampler[list[tuple[int, int]]]):
    """One process's share of every batch from step `first` on, in order."""

    def __init__(self, plan: Plan, first: int, last: int, rank: int = 0, world: int = 1) -> None:
        self.plan, self.steps = plan, range(first, last)
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            yield self.plan.batch(step)[self.rank :: self.world]


class TrainingImages(Dataset[tuple[Any, int]]):
    """An `ImageFolder`, augmented by draws that depend on (seed, epoch, image) alone."""

    def __init__(self, folder: ImageFolder, transform: Any, seed: int) -> None:
        self.folder, self.transform, self.seed = folder, transform, seed

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int]:
        epoch, index = key
        file = self.folder.files[index]
        try:
            image = to_rgb(read_image(file))
        except InputError as error:
            raise InputError(
                str(error) if str(file) in str(error) else f"{file}: {error}"
            ) from error
        seed_all(self.seed, epoch, index)
        return self.transform(image), self.folder.labels[index]


def make_loader(
    data: ImageFolder,
    preprocessing: Preprocessing,
    options: FinetuneOptions,
    batches: PlannedBatches,
) -> DataLoader[tuple[Any, int]]:
    """Batches of (images [b, 3, H, W], labels [b]) with the model's own preprocessing."""
    transform = create_transform(
        input_size=preprocessing.input_size,
        is_training=True,
        scale=(options.min_scale, 1.0),
        ratio=options.ratio,
        hflip=options.hflip,
        vflip=options.vflip,
        color_jitter=options.color_jitter,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    return DataLoader(
        TrainingImages(data, transform, options.seed),
        batch_sampler=batches,
        num_workers=min(options.workers, usable_cores()) if len(batches) else 0,
        pin_memory=options.device.startswith("cuda"),
    )


def readable_errors(loader: DataLoader[tuple[Any, int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches; a worker's error as one line, not with its traceback as text."""
    try:
        yield from loader
    except InputError as error:
        last = str(error).strip().splitlines()[-1]
        if last == str(error):
            raise
        raise InputError(last.partition("Error: ")[2]) from None


def seed_all(*words: int) -> None:
    """Seed every generator that augmentation and dropout draw from."""
    values = np.random.SeedSequence(words).generate_state(3)
    random.seed(int(values[0]))
    np.random.seed(values[1])
    torch.manual_seed(int(values[2]))
