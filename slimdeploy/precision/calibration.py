"""Representative images, from an .npz file or an image folder, with a hash of what they are."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import InputError, one_line
from slimdeploy.images import ImageFolder, spread
from slimdeploy.preprocessing import Preprocessing

Images = NDArray[np.float32]


class Calibration(Protocol):
    """Images in a fixed order, ready for the model."""

    @property
    def described(self) -> Described:
        """What they are, for the record."""
        ...

    def batches(self, size: int) -> Iterator[Images]:
        """All images, [n, C, H, W], `size` at a time.

        Raises:
            InputError: naming the first image that cannot be read.
        """
        ...

    def spread(self, n: int) -> Calibration:
        """At most `n` of them, evenly apart: the first ones may all be of one class."""
        ...


@dataclass(frozen=True)
class Described:
    """Which images: where they come from, how many, and a SHA-256 over names and contents."""

    source: str
    count: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)


@dataclass(frozen=True)
class ArrayCalibration:
    """Preprocessed images in memory, [n, C, H, W]."""

    images: Images
    source: str

    @property
    def described(self) -> Described:
        """What they are, for the record."""
        digest = hashlib.sha256(f"{self.images.shape}".encode())
        digest.update(np.ascontiguousarray(self.images).data)
        return Described(self.source, len(self.images), digest.hexdigest())

    def batches(self, size: int) -> Iterator[Images]:
        """All images, `size` at a time."""
        for start in range(0, len(self.images), size):
            yield self.images[start : start + size]

    def spread(self, n: int) -> ArrayCalibration:
        """At most `n` of them, evenly apart."""
        return ArrayCalibration(self.images[spread(len(self.images), n)], self.source)


@dataclass(frozen=True)
class FolderCalibration:
    """Photographs, decoded when they are needed."""

    folder: ImageFolder
    preprocessing: Preprocessing

    @property
    def described(self) -> Described:
        """What they are, for the record."""
        return Described(str(self.folder.root), len(self.folder), self.folder.digest())

    def batches(self, size: int) -> Iterator[Images]:
        """All images, `size` at a time."""
        for batch in self.folder.batches(self.preprocessing, size):
            yield batch.images

    def spread(self, n: int) -> FolderCalibration:
        """At most `n` of them, evenly apart."""
        return FolderCalibration(self.folder.spread(n), self.preprocessing)


def open_calibration(
    path: Path,
    shape: tuple[int, ...],
    preprocessing: Preprocessing | None,
    *,
    images: int,
    seed: int,
    split: str | None = None,
) -> Calibration:
    """The images at `path`: an .npz file, or a folder of which a stratified sample is drawn.

    Args:
        shape: of one image as the model takes it.
        preprocessing: for a folder.
        images: of a folder, how many; an .npz file is taken whole.
        seed: of their draw.
        split: of the folder; train, if it has one.

    Raises:
        InputError: if there is nothing there, it is empty, of another shape, or not finite.
    """
    if path.suffix == ".npz":
        return ArrayCalibration(_load_npz(path, shape), str(path))
    if not path.is_dir():
        raise InputError(
            f"--calibration {path}: is neither an .npz file nor a folder of images that is there"
        )
    if preprocessing is None:
        raise InputError(
            f"--calibration {path}: the model's manifest records no preprocessing; give --mean and "
            "--std, or an .npz file of preprocessed images"
        )
    if split is None and (path / "train").is_dir():
        split = "train"
    folder = ImageFolder.open(path, split, labelled=False)
    return FolderCalibration(folder.sample(images, seed), preprocessing)


_UNREADABLE = (
    OSError, ValueError, EOFError, KeyError, TypeError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy and zipfile raise for files that are no archive, or a damaged one."""


def _load_npz(path: Path, shape: tuple[int, ...]) -> Images:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        raise InputError(
            f"{path}: not a readable .npz file ({one_line(error)}); write it again with numpy.savez"
        ) from error
    if len(arrays) != 1:
        held = ", ".join(arrays) or "nothing"
        raise InputError(f"{path}: must hold one array, the preprocessed images; holds {held}")
    name, array = next(iter(arrays.items()))
    wanted = f"floats [n, {', '.join(map(str, shape))}]"
    if array.dtype.kind != "f" or array.shape[1:] != shape or not len(array):
        found = f"{array.dtype}{list(array.shape)}"
        raise InputError(f"{path}: '{name}' is {found}; the model needs {wanted}, preprocessed")
    if not np.isfinite(array).all():
        raise InputError(f"{path}: '{name}' holds NaN or infinity; preprocess the images again")
    images: Images = array.astype(np.float32, copy=False)
    return images
