"""Arrays over all calibration images: in memory while they are few, then on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from slimdeploy.files import TEMPORARY, disk_errors

Array: TypeAlias = NDArray[Any]

BUDGET = 1 << 29
"""Bytes of activations held in memory; beyond, they lie in files that the system pages in."""


class Store:
    """Hands out arrays [n, ...] within a budget of memory; get one from `open_store`.

    A released array's memory is free for the next one.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.free = folder, budget
        self._on_disk: set[int] = set()
        self._made = 0

    def new(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of this shape and type, its numbers undefined.

        Raises:
            InputError: if the disk has no room for it.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size <= self.free:
            self.free -= size
            return np.empty(shape, dtype)
        self._made += 1
        path = self.folder / f"{self._made}.bin"
        with disk_errors(path):
            _reserve(path, size)
        array = np.memmap(path, dtype, "r+", shape=shape)
        if os.name == "posix":
            path.unlink()  # nothing is left, whatever ends the process: the array keeps the pages
        self._on_disk.add(id(array))
        return array

    def copy(self, array: Array, rows: Sequence[int]) -> Array:
        """Some rows of an array, copied one by one."""
        found = self.new((len(rows), *array.shape[1:]), array.dtype)
        for place, row in enumerate(rows):
            found[place] = array[row]
        return found

    def release(self, *arrays: Array | None) -> None:
        """Give back what `new` handed out; the arrays must not be used any more."""
        for array in arrays:
            if array is None:
                continue
            if id(array) in self._on_disk:
                self._on_disk.remove(id(array))
            else:
                self.free += array.nbytes

    @property
    def on_disk(self) -> int:
        """Number of arrays in files."""
        return len(self._on_disk)


def _reserve(path: Path, size: int) -> None:
    """A file of this size: a page for which there is no room later would end the process."""
    with path.open("wb") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)


@contextmanager
def open_store(budget: int | None = None) -> Iterator[Store]:
    """A store of that many bytes of memory (default: `BUDGET`), whose files are gone afterwards."""
    with TemporaryDirectory(prefix=TEMPORARY) as folder:
        yield Store(Path(folder), BUDGET if budget is None else budget)
