"""The processes of one training: alone, or started by torchrun on one machine or several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from slimdeploy.errors import InputError
from slimdeploy.slim.training import check_device

_SET_BY_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# The others wait while the first one judges the model on the validation images.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    Attributes:
        device: what it computes on.
        rank: its number; the first one, 0, reads and writes files and speaks.
        size: how many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process reads and writes files and speaks."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """The first process's `value`, in all of them."""
        if self.size == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]

    def check_batch(self, batch_size: int) -> None:
        """Refuse a batch that the processes cannot share evenly.

        Raises:
            InputError: then their averaged gradient would not be the batch's.
        """
        if batch_size % self.size:
            raise InputError(
                f"--batch-size {batch_size}: cannot be shared evenly by {self.size} processes; "
                "it counts the images of all of them"
            )


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the other processes if torchrun started this one, for as long as the body lasts.

    Raises:
        InputError: for a name that is no device, or half of what torchrun sets.
        MissingError: for a CUDA device where there is none.
    """
    check_device(device)
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield World(torch.device(device))
        return
    if missing := [name for name in _SET_BY_TORCHRUN if name not in os.environ]:
        raise InputError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} not set: start with torchrun, or "
            "unset WORLD_SIZE"
        )
    here = torch.device(device)
    if here.type == "cuda":
        here = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(here)
    backend = "nccl" if here.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield World(here, distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
