"""Draw calibration images, and make the very same again from a committed list.

    python -m calibration.draw list --data-dir build/elpv --output calibration/elpv.json
    python -m calibration.draw make calibration/elpv.json --data-dir build/elpv --output c.npz

The draw is stratified (each class keeps its share), depends on the seed and the files' names alone,
and a larger one contains the smaller ones. The list holds names and hashes, no pixels: photographs
that may not be redistributed stay where they are. `make` checks every hash before it writes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

import numpy as np
from cyclopts import App
from pydantic import BaseModel, ConfigDict, ValidationError

from slimdeploy.console import note, progress_bar
from slimdeploy.errors import GateError, InputError, SlimdeployError
from slimdeploy.files import atomic_path, read_bytes, sha256_file, write_text
from slimdeploy.images import ImageFolder, load, spread
from slimdeploy.manifest import read_manifest
from slimdeploy.preprocessing import Preprocessing, first_problem

app = App(help="Draw calibration images.")


class Drawn(BaseModel):
    """Which images were drawn, and what is done to them.

    Attributes:
        split: of the data folder that they are in; None where it has no splits.
        seed: of the draw.
        files: the hash of each file, by its name in the split.
        preprocessing: of the model that they are for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["calibration-list"] = "calibration-list"
    split: str | None
    seed: int
    files: dict[str, str]
    preprocessing: Preprocessing

    @classmethod
    def read(cls, path: Path) -> Drawn:
        """From a file.

        Raises:
            InputError: naming the field at fault.
        """
        try:
            return cls.model_validate_json(read_bytes(path))
        except ValidationError as error:
            raise InputError(
                f"{path}: not a calibration list: {first_problem(error)}; draw it again with `list`"
            ) from error


@app.command(name="list")
def list_images(
    *, data_dir: Path, model: Path, output: Path, split: str | None = "train",
    images: int = 128, seed: int = 0,
) -> None:  # fmt: skip
    """Draw images and write their names and hashes.

    Args:
        data_dir: an image folder, or one with splits.
        model: the ONNX file they are for; its manifest says how they are preprocessed.
        output: the list.
        split: of the folder.
        images: how many.
        seed: of the draw.
    """
    preprocessing = read_manifest(model).preprocessing
    if preprocessing is None:
        raise InputError(f"{model}: its manifest records no preprocessing")
    folder = ImageFolder.open(data_dir, split, labelled=False).sample(images, seed)
    files = {file.relative_to(folder.root).as_posix(): sha256_file(file) for file in folder.files}
    drawn = Drawn(split=split, seed=seed, files=files, preprocessing=preprocessing)
    write_text(output, json.dumps(drawn.model_dump(mode="json"), indent=1) + "\n")
    note(f"wrote {output}: {len(files)} images")


@app.command
def make(listed: Path, *, data_dir: Path, output: Path, images: int | None = None) -> None:
    """Make an .npz file of the listed images, preprocessed, for `quantize --calibration`.

    Args:
        listed: a list that `list` wrote.
        data_dir: where the images are.
        output: the .npz file: one array [n, 3, H, W], float16, which holds 8-bit pixels exactly
            enough.
        images: of the list, only so many, spread evenly.
    """
    drawn = Drawn.read(listed)
    root = data_dir / drawn.split if drawn.split else data_dir
    names = list(drawn.files)
    if images is not None:
        if not 1 <= images <= len(names):
            raise InputError(f"--images {images}: {listed} holds {len(names)}")
        names = [names[i] for i in spread(len(names), images)]
    arrays = []
    with progress_bar() as progress:
        bar = progress.add_task("images", total=len(names))
        for name in names:
            if sha256_file(root / name) != drawn.files[name]:
                raise GateError(f"{root / name}: is not the image that {listed} names")
            arrays.append(load(root / name, drawn.preprocessing).astype(np.float16))
            progress.advance(bar)
    with atomic_path(output) as path, path.open("wb") as file:
        np.savez_compressed(file, images=np.stack(arrays))
    note(f"wrote {output}: {len(arrays)} images")


def main() -> None:
    """Run it; an error is one line."""
    try:
        app()
    except SlimdeployError as error:
        note(f"calibration: error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
