"""Write Fashion-MNIST as image folders: `train/`, `val/` (5,000 of the training images), `test/`.

The 60,000 + 10,000 photographs (28 by 28, grey; MIT licence) come as the four `*-ubyte.gz` files of
the Debian package `dataset-fashion-mnist` or of its home page.

    python -m tools.fashion_mnist.prepare --output build/fashion_mnist
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

CLASSES = (
    "0-t-shirt", "1-trouser", "2-pullover", "3-dress", "4-coat", "5-sandal", "6-shirt",
    "7-sneaker", "8-bag", "9-ankle-boot",
)  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
VALIDATION = 500
"""Images of each class taken from the end of the training set to choose by."""


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file of bytes: magic number, big-endian sizes, data."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: is no IDX file of unsigned bytes")
    sizes = np.frombuffer(data, ">u4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes)


def splits(source: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Images [n, 28, 28] and labels [n] by split."""
    images, labels = (
        read_idx(source / f"train-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")
    )
    held = np.zeros(len(labels), bool)
    for label in range(len(CLASSES)):
        held[np.flatnonzero(labels == label)[-VALIDATION:]] = True
    test = tuple(
        read_idx(source / f"t10k-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")
    )
    return {
        "train": (images[~held], labels[~held]),
        "val": (images[held], labels[held]),
        "test": (test[0], test[1]),
    }


def write(output: Path, source: Path) -> None:
    """Write all splits beside `output` and move them there when they are complete."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        for name, (images, labels) in splits(source).items():
            for label in CLASSES:
                (temporary / name / label).mkdir(parents=True)
            rows = range(len(images))
            for row in track(rows, description=name, disable=not sys.stderr.isatty()):
                file = temporary / name / CLASSES[labels[row]] / f"{row:05d}.png"
                Image.fromarray(images[row]).save(file)
        temporary.chmod(0o755)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/fashion_mnist"))
    parser.add_argument("--source", type=Path, default=DEBIAN, help="folder of the four files")
    arguments = parser.parse_args()
    if arguments.output.is_dir():
        print(f"{arguments.output} is there already: left alone")
        return 0
    if not (arguments.source / "train-images-idx3-ubyte.gz").is_file():
        print(
            f"{arguments.source}: no train-images-idx3-ubyte.gz there; install the Debian package "
            "dataset-fashion-mnist or give --source",
            file=sys.stderr,
        )
        return 3
    write(arguments.output, arguments.source)
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
