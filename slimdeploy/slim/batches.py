"""Activations of all calibration images, batch by batch, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from slimdeploy.store import Array, Store


class Held(Protocol):
    """What a step of the refit puts aside: `InMemory`, or `Batches` where there are many images."""

    def append(self, x: Tensor, /) -> None:
        """Put the next batch at the end."""

    def __setitem__(self, index: int, x: Tensor, /) -> None:
        """Put another batch of the same shape in the place of one."""

    def __iter__(self) -> Iterator[Tensor]: ...

    def __len__(self) -> int: ...

    def release(self) -> None:
        """It is not read any more."""


class InMemory(list[Tensor]):
    """Batches of a few images."""

    def release(self) -> None:
        """Forget them."""
        self.clear()


class Batches:
    """A list of batches [B, q, D] that lie in a `Store`: in memory while few, then on disk.

    The first batch decides q and D. A batch that is read shares the store's memory: it must not be
    changed, and not be used after `release`.

    Args:
        store: open as long as the batches are used.
        images: in all batches together.
    """

    def __init__(self, store: Store, images: int) -> None:
        self._store, self._images = store, images
        self._array: Array | None = None
        self._rows: list[slice] = []

    def append(self, x: Tensor, /) -> None:
        """Copy the next batch to the end."""
        if self._array is None:
            like = x[:0].numpy()
            self._array = self._store.new((self._images, *like.shape[1:]), like.dtype)
        start = self._rows[-1].stop if self._rows else 0
        self._rows.append(slice(start, start + len(x)))
        self[len(self) - 1] = x

    def __setitem__(self, index: int, x: Tensor, /) -> None:
        """Copy a batch of the same shape into the place of one."""
        assert self._array is not None
        self._array[self._rows[index]] = x.numpy()

    def __iter__(self) -> Iterator[Tensor]:
        assert self._array is not None
        yield from (torch.from_numpy(self._array[rows]) for rows in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def release(self) -> None:
        """Give the memory back to the store."""
        self._store.release(self._array)
        self._array, self._rows = None, []


def picked(store: Store, images: Tensor, rows: list[int]) -> Tensor:
    """Some of the images [n, C, H, W], copied into the store."""
    return torch.from_numpy(store.copy(images.numpy(), rows))


def replaced(held: Held, change: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Put `change(batch)`, of the same shape, in the place of each batch while it is given."""
    for index, x in enumerate(held):
        held[index] = found = change(x)
        yield found
