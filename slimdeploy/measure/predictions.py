"""What models answered to each image, in a file, so that others can count again."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import InputError
from slimdeploy.files import atomic_path, check_writable
from slimdeploy.measure.accuracy import Accuracy

_SUFFIXES = (".npz", ".csv")


def check_predictions(path: Path, *inputs: Path | None) -> None:
    """Fail now if `path` could not be written, or is one of the files that are read.

    Raises:
        InputError: naming it.
    """
    if path.suffix not in _SUFFIXES:
        raise InputError(f"--predictions {path}: name a file that ends in .npz or .csv")
    check_writable(path, *inputs)


def write_predictions(path: Path, found: Accuracy, dense: Accuracy | None = None) -> None:
    """Write file names, labels and logits of every image.

    The archive holds `files`, `labels`, `classes`, `logits` [n, classes] and, with a dense model,
    `dense_logits`; the table has a row an image, numbers written so that they read back exactly.
    """
    sides = {"logits": found.logits} | ({} if dense is None else {"dense_logits": dense.logits})
    with atomic_path(path) as temporary:
        if path.suffix == ".csv":
            _write_csv(temporary, found, sides)
        else:
            arrays: dict[str, Any] = {**sides, "labels": found.labels}
            arrays["files"], arrays["classes"] = np.array(found.files), np.array(found.classes)
            np.savez(temporary, **arrays)


def _write_csv(path: Path, found: Accuracy, sides: Mapping[str, NDArray[np.float32]]) -> None:
    heads = [f"{side}:{name}" for side in sides for name in found.classes]
    # A file's name need not be UTF-8.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "label", *heads])
        for i, (name, label) in enumerate(zip(found.files, found.labels, strict=True)):
            # str() of a float32 is the shortest text that reads back as the same number.
            numbers = [str(x) for logits in sides.values() for x in logits[i]]
            writer.writerow([name, found.classes[label], *numbers])
