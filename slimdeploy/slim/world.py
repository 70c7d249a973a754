"""The processes of one training: alone, or started by torchrun on one machine or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from slimdeploy.errors import GateError, InputError, SlimdeployError
from slimdeploy.slim.training import check_device

_SET_BY_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# The others wait while the first one judges the model on the validation images.
_PATIENCE = timedelta(hours=2)

T = TypeVar("T")


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

    def of_first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, in all of them.

        Raises:
            SlimdeployError: in all of them, what it raises in the first.
        """
        if self.size == 1:
            return make()
        held: list[tuple[T | None, SlimdeployError | None]] = [(None, None)]
        if self.leads:
            try:
                held = [(make(), None)]
            except SlimdeployError as error:
                held = [(None, error)]
        distributed.broadcast_object_list(held, src=0)
        value, refusal = held[0]
        if refusal is not None:
            raise refusal
        return cast(T, value)

    def mean(self, value: Tensor) -> float:
        """Mean of a number over the processes, in all of them: all see it if one has NaN."""
        total = value.detach().float().clone()
        if self.size > 1:
            distributed.all_reduce(total)
        return float(total) / self.size

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
        MissingError: for a device that this machine does not have.
        GateError: if another process ended before this one was done.
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
    except RuntimeError as error:
        if not _tells_of_another(error):
            raise
        raise GateError("another process of this training ended first; it says why") from error
    finally:
        distributed.destroy_process_group()


def _tells_of_another(error: RuntimeError) -> bool:
    """Whether a connection broke: gloo raises a plain RuntimeError, with its source file."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)
