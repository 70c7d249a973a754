"""A folder of labelled photographs: `root/class/image.png`, or `root/split/class/image.png`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import InputError, one_line
from slimdeploy.files import sha256_file
from slimdeploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
SPLITS = frozenset(("train", "val", "valid", "validation", "test"))


@dataclass(frozen=True)
class Batch:
    """Images as float32 [n, 3, height, width] and their class numbers, int64 [n]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class ImageFolder:
    """Image files in a fixed order, each with the number of its class.

    Attributes:
        root: the folder that holds the class folders.
        classes: the class folders' names, sorted; a label is a position in this list.
        files: sorted by class, then by path.
        labels: the class number of each file.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    @classmethod
    def open(cls, path: Path | str, split: str | None = None, *, labelled: bool = True) -> Self:
        """List the images below `path`, or below `path/split`.

        Where no labels are needed (`labelled` False) one folder of images is enough, and they may
        also lie in `path` itself, all of them or beside folders of others.

        Raises:
            InputError: no such folder or split, fewer than two classes, or an empty class.
        """
        root = _choose_split(Path(path), split)
        per_class = _by_class(root) if labelled else _by_folder(root)
        return cls(
            root=root,
            classes=tuple(per_class),
            files=tuple(file for files in per_class.values() for file in files),
            labels=tuple(i for i, files in enumerate(per_class.values()) for _ in files),
        )

    def __len__(self) -> int:
        return len(self.files)

    def check_classes(self, outputs: int, model: str) -> None:
        """Refuse a model that does not have one output per class folder.

        Raises:
            InputError: if the numbers differ.
        """
        if outputs != len(self.classes):
            raise InputError(
                f"{self.root}: {len(self.classes)} class folders, but {model} has {outputs} "
                "outputs; give the data it was trained on"
            )

    def sample(self, n: int, seed: int, *, stratified: bool = True) -> Self:
        """At most `n` images, drawn without replacement, in the folder's own order.

        The draw depends on `seed` and the files' names alone, not on a library's generator, and a
        larger sample contains the smaller ones. Stratified: each class keeps its share.

        Raises:
            InputError: if `n` is below 1.
        """
        if n < 1:
            raise InputError(f"a sample of {n} images is empty: ask for 1 or more")
        keys = [hashlib.sha256(_bytes(f"{seed}:{name}")).digest() for name in self._names()]
        sizes, seen = Counter(self.labels), Counter[int]()
        places: list[tuple[float, bytes, int]] = []
        for index in sorted(range(len(self)), key=keys.__getitem__):
            label = self.labels[index]
            share = (seen[label] + 0.5) / sizes[label] if stratified else 0.0
            seen[label] += 1
            places.append((share, keys[index], index))
        return self._only(sorted(index for _, _, index in sorted(places)[:n]))

    def spread(self, n: int) -> Self:
        """At most `n` images, evenly apart, so that every class is looked at."""
        return self._only(spread(len(self), n))

    def without(self, other: ImageFolder) -> Self:
        """The images that `other` does not have."""
        there = {*other.files}
        return self._only([i for i, file in enumerate(self.files) if file not in there])

    def _only(self, chosen: Sequence[int]) -> Self:
        return replace(
            self,
            files=tuple(self.files[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
        )

    def batches(
        self, preprocessing: Preprocessing, batch_size: int, *, threads: int = 4
    ) -> Iterator[Batch]:
        """All images in order, `batch_size` at a time; the last batch may be smaller.

        The next batch is decoded by `threads` threads while the caller works on this one.

        Raises:
            InputError: naming the first image that cannot be read.
        """
        if batch_size < 1:
            raise InputError(f"a batch of {batch_size} images is empty: ask for 1 or more")
        starts = range(0, len(self), batch_size)
        with ThreadPoolExecutor(threads) as pool:

            def ask(start: int) -> list[Future[NDArray[np.float32]]]:
                files = self.files[start : start + batch_size]
                return [pool.submit(load, file, preprocessing) for file in files]

            try:
                ahead = ask(0)
                for start in starts:
                    current, ahead = ahead, ask(start + batch_size)
                    images = np.stack([future.result() for future in current])
                    yield Batch(
                        images, np.array(self.labels[start : start + len(images)], np.int64)
                    )
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def digest(self) -> str:
        """SHA-256, hexadecimal, over every file's relative name and contents, in order.

        Raises:
            InputError: if a file cannot be read.
        """
        total = hashlib.sha256()
        with ThreadPoolExecutor(4) as pool:
            for name, content in zip(self._names(), pool.map(sha256_file, self.files), strict=True):
                total.update(_bytes(f"{name}\0{content}\n"))
        return total.hexdigest()

    def _names(self) -> list[str]:
        return [file.relative_to(self.root).as_posix() for file in self.files]


def _bytes(text: str) -> bytes:
    """UTF-8; of a file's name that is none, the bytes that it has on the disk."""
    return text.encode("utf-8", "surrogateescape")


def spread(total: int, n: int) -> list[int]:
    """At most `n` of the places 0 to `total` - 1, evenly apart: images are sorted by class."""
    n = min(n, total)
    return [i * total // n for i in range(n)]


def read_image(file: Path) -> Image.Image:
    """Decode an image file completely; `info["file"]` is its name, for messages.

    Raises:
        InputError: if it is missing, truncated or not an image.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
            found = image.copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = one_line(error).replace(f" '{file}'", "")
        raise InputError(f"{file}: cannot be read as an image ({reason}); replace it") from error
    found.info["file"] = str(file)
    return found


def load(file: Path, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """One image file as the model's input, float32 [3, height, width].

    Raises:
        InputError: as `read_image`, or if the image has more than 8 bits a channel.
    """
    image = read_image(file)
    try:
        return preprocessing.apply(image)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def is_split(path: Path, name: str) -> bool:
    """Whether `path/name` is a split of the data, and not one class of several.

    A class is called that where it holds no folders of its own and lies beside other images'.
    """
    folder = path / name
    if not folder.is_dir():
        return False
    others = [path / other for other in _subfolders(path) if other not in SPLITS]
    return bool(_subfolders(folder)) or not any(map(_images_in, others))


def _choose_split(path: Path, split: str | None) -> Path:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; --data-dir names a folder of class folders")
    found = _subfolders(path)
    if split is not None:
        if split not in found:
            held = ", ".join(found[:8]) or "nothing"
            raise InputError(f"{path}: has no split '{split}'; it holds {held}")
        return path / split
    if found and SPLITS.issuperset(found):
        raise InputError(f"{path}: holds the splits {', '.join(found)}; choose one with --split")
    return path


def _subfolders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _by_class(root: Path) -> dict[str, list[Path]]:
    """The images of each class folder."""
    classes = _subfolders(root)
    if len(classes) < 2:
        found = f"only '{classes[0]}'" if classes else "none"
        raise InputError(f"{root}: needs two class folders or more with images in; found {found}")
    return {name: _images_below(root / name) for name in classes}


def _by_folder(root: Path) -> dict[str, list[Path]]:
    """The images of each folder, and under no name those of `root` itself."""
    folders = _subfolders(root)
    if loose := [file for file in _images_in(root) if file.parent == root]:
        others = {name: files for name in folders if (files := _images_in(root / name))}
        return {"": loose, **others}
    if not folders:
        raise InputError(f"{root}: no images here, nor folders of images")
    return {name: _images_below(root / name) for name in folders}


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _images_below(folder: Path) -> list[Path]:
    files = _images_in(folder)
    if not files:
        raise InputError(f"{folder}: no images in this class folder; add some or remove it")
    return files
