"""Split the ELPV solar-cell photographs into ImageFolders for training, validation and testing.

The 2,624 photographs come from the `elpv-dataset` package (`pip install elpv-dataset`), which is
licensed CC BY-NC-SA 4.0: it is installed, never redistributed with this project.

    python tools/prepare_elpv.py --output build/elpv

writes `train/`, `val/` and `test/`, each with the class folders `defective/` and `functional/`,
a `labels.csv` (split, file, class, annotated probability, cell type) and a `split.json` (settings,
counts and a hash of the file lists).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

EXIT_USAGE = 2
EXIT_MISSING_PACKAGE = 3
FRACTIONS = {"val": 0.1, "test": 0.2}  # the rest is the training split
SPLITS = ("train", "val", "test")
DEFECT_THRESHOLD = 0.5
FORMAT_VERSION = 1


class Cell(NamedTuple):
    """One photograph: its path in the package and its annotations."""

    path: Path
    probability: float
    kind: str

    @property
    def class_name(self) -> str:
        """The class folder this photograph belongs in."""
        return "defective" if self.probability > DEFECT_THRESHOLD else "functional"


def package_folder() -> Path | None:
    """Return the data folder of the installed `elpv-dataset` package, or None."""
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    return folder if (folder / "labels.csv").is_file() else None


def read_cells(folder: Path) -> list[Cell]:
    """Read `labels.csv` (columns separated by runs of spaces) of the package."""
    cells = []
    for line in (folder / "labels.csv").read_text(encoding="utf-8").splitlines():
        if line.strip():
            name, probability, kind = line.split()
            cells.append(Cell(folder / name, float(probability), kind))
    return cells


def split_cells(cells: Sequence[Cell], seed: int) -> dict[str, list[Cell]]:
    """Split the photographs 70/10/20 %, stratified by annotated probability and cell type."""
    strata: dict[tuple[float, str], list[Cell]] = defaultdict(list)
    for cell in sorted(cells, key=lambda cell: cell.path.name):
        strata[round(cell.probability, 3), cell.kind].append(cell)
    generator = random.Random(seed)
    splits: dict[str, list[Cell]] = {name: [] for name in SPLITS}
    for key in sorted(strata):
        members = strata[key]
        generator.shuffle(members)
        start = 0
        for name, fraction in FRACTIONS.items():
            stop = start + round(fraction * len(members))
            splits[name] += members[start:stop]
            start = stop
        splits["train"] += members[start:]
    return {name: sorted(part, key=lambda cell: cell.path.name) for name, part in splits.items()}


def settings_of(seed: int) -> dict[str, Any]:
    """Everything that decides the content of the output folder."""
    try:
        version = importlib.metadata.version("elpv-dataset")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return {
        "format": FORMAT_VERSION,
        "package": f"elpv-dataset {version}",
        "seed": seed,
        "fractions": FRACTIONS,
        "defective_above": DEFECT_THRESHOLD,
        "stratified_by": ["probability", "type"],
    }


def describe(splits: dict[str, list[Cell]], seed: int) -> dict[str, Any]:
    """Return the content of `split.json`: settings, counts and a hash of the file lists."""
    listing = "\n".join(
        f"{name}/{cell.class_name}/{cell.path.name}" for name in SPLITS for cell in splits[name]
    )
    return {
        "settings": settings_of(seed),
        "counts": {
            name: dict(sorted(Counter(cell.class_name for cell in splits[name]).items()))
            for name in SPLITS
        },
        "files_sha256": hashlib.sha256(listing.encode()).hexdigest(),
    }


def is_complete(output: Path, description: dict[str, Any]) -> bool:
    """Tell whether `output` already holds this very split, with every file in place."""
    try:
        if json.loads((output / "split.json").read_text(encoding="utf-8")) != description:
            return False
    except (OSError, ValueError):
        return False
    return all(
        len(list((output / split / class_name).glob("*.png"))) == count
        for split, classes in description["counts"].items()
        for class_name, count in classes.items()
    )


def write_splits(folder: Path, splits: dict[str, list[Cell]], console: Console) -> None:
    """Copy the photographs, unchanged, into class folders and list them in `labels.csv`."""
    rows = [(name, cell) for name in SPLITS for cell in splits[name]]
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["split", "file", "class", "probability", "type"])
        for name, cell in track(rows, description="Copying photographs", console=console):
            target = folder / name / cell.class_name / cell.path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cell.path, target)
            writer.writerow([name, target.name, cell.class_name, cell.probability, cell.kind])


def replace_folder(new: Path, output: Path) -> None:
    """Put `new` in the place of `output`, which another split of this script may occupy."""
    if not output.exists():
        os.rename(new, output)
        return
    retired = new.with_name(new.name + ".old")
    os.rename(output, retired)
    os.rename(new, output)
    shutil.rmtree(retired)


def prepare(output: Path, seed: int, source: Path, console: Console) -> dict[str, Any]:
    """Write the split to `output` unless it is there already; return its description.

    Raises:
        FileExistsError: `output` holds something that this script did not write.
    """
    splits = split_cells(read_cells(source), seed)
    description = describe(splits, seed)
    if is_complete(output, description):
        console.print(f"{output} already holds this split: left alone.")
        return description
    if output.exists() and not (output / "split.json").is_file() and any(output.iterdir()):
        raise FileExistsError(f"{output} holds other files: choose another --output folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    # A sibling folder is on the same file system, so the final rename is atomic.
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        temporary.chmod(0o755)
        write_splits(temporary, splits, console)
        text = json.dumps(description, indent=2) + "\n"
        (temporary / "split.json").write_text(text, encoding="utf-8")
        replace_folder(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return description


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(description="Split the ELPV photographs into ImageFolders.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code."""
    arguments = build_parser().parse_args(argv)
    console = Console(stderr=True)
    source = package_folder()
    if source is None:
        console.print("The elpv-dataset package is missing: run `pip install elpv-dataset`.")
        return EXIT_MISSING_PACKAGE
    try:
        description = prepare(arguments.output, arguments.seed, source, console)
    except (FileExistsError, NotADirectoryError) as error:
        console.print(f"error: {error}", soft_wrap=True)
        return EXIT_USAGE
    for name, classes in description["counts"].items():
        listed = ", ".join(f"{count} {class_name}" for class_name, count in classes.items())
        print(f"{name}: {sum(classes.values())} photographs ({listed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
