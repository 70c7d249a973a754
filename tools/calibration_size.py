"""How many calibration images are enough: int8's error against their number.

    python -m tools.calibration_size --model slim.onnx --data-dir build/elpv

Ranges are taken from nested draws of the training split, for several seeds; the file of each is
judged on test images, by top-1 and by how far its outputs are from the float32 file's.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from cyclopts import App
from numpy.typing import NDArray

from slimdeploy.cli.common import load_arrays, open_images
from slimdeploy.console import note
from slimdeploy.engine import open_engine
from slimdeploy.files import sha256_file, write_text
from slimdeploy.graph.files.storage import load_model, save_model
from slimdeploy.images import ImageFolder
from slimdeploy.manifest import verify_manifest
from slimdeploy.measure.feeding import infer_all
from slimdeploy.precision.calibration import FolderCalibration
from slimdeploy.precision.options import PrecisionOptions
from slimdeploy.precision.quantize import RangeRequest, collect_ranges, quantized_graph
from slimdeploy.preprocessing import Preprocessing

app = App(help="int8's error against the number of calibration images.")

Floats = NDArray[np.float32]
OPTIONS = PrecisionOptions("int8", "fp32", also=("embedding",))
REQUEST = RangeRequest(smooth=0.8)


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    path: Path
    model: onnx.ModelProto
    preprocessing: Preprocessing
    train: ImageFolder
    images: Floats
    labels: NDArray[np.int64]
    exact: Floats

    def row(self, count: int, seed: int) -> dict[str, Any]:
        """The error with ranges from `count` images."""
        images = FolderCalibration(self.train.sample(count, seed), self.preprocessing)
        ranges = collect_ranges(self.path, self.model, OPTIONS, images, REQUEST)
        made = quantized_graph(self.model, OPTIONS, ranges)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            save_model(made.model, path)
            found = _logits(path, self.images)
        return {
            "images": count,
            "seed": seed,
            "top1": float((found.argmax(axis=1) == self.labels).mean()),
            "agreement": float((found.argmax(axis=1) == self.exact.argmax(axis=1)).mean()),
            "rms_error": float(np.sqrt(((found - self.exact) ** 2).mean()) / self.exact.std()),
        }


@app.default
def main(
    *,
    model: Path,
    data_dir: Path = Path("build/elpv"),
    output: Path = Path("docs/bench/calibration"),
    counts: tuple[int, ...] = (1, 4, 16, 32, 64, 128),
    seeds: int = 2,
    test_images: int = 263,
) -> None:
    """Make the table: OUTPUT.json holds the rows, OUTPUT.md shows them; a stopped run goes on."""
    preprocessing = verify_manifest(model).preprocessing
    assert preprocessing is not None
    test = open_images(data_dir, None, "test").sample(test_images, seed=0)
    images = load_arrays(test, preprocessing)
    exact = _logits(model, images)
    labels = np.array(test.labels)
    train = ImageFolder.open(data_dir, "train")
    bench = Bench(model, load_model(model), preprocessing, train, images, labels, exact)
    path = output.with_suffix(".json")
    settings = {"model": sha256_file(model), "test_images": len(test), "smooth": REQUEST.smooth}
    table = json.loads(path.read_text()) if path.is_file() else {}
    if table.get("settings") != settings:
        top1 = float((exact.argmax(axis=1) == labels).mean())
        table = {"settings": settings, "float32_top1": top1, "rows": []}
    for seed in range(seeds):
        for count in counts:
            if any((r["images"], r["seed"]) == (count, seed) for r in table["rows"]):
                continue
            table["rows"].append(bench.row(count, seed))
            note(json.dumps(table["rows"][-1]))
            write_text(path, json.dumps(table, indent=2) + "\n")
            write_text(output.with_suffix(".md"), "\n".join(_page(table)) + "\n")


def _logits(path: Path, images: Floats) -> Floats:
    with open_engine(path, threads=1) as engine:
        name = engine.outputs[0].name
        parts = [infer_all(engine, images[i : i + 16])[name] for i in range(0, len(images), 16)]
    return np.concatenate(parts)


def _page(table: dict[str, Any]) -> list[str]:
    rows = table["rows"]
    lines = [
        "# int8 against the number of calibration images",
        "",
        "The demo's slim model, int8 with a float32 rest, "
        f"`--smooth {table['settings']['smooth']}`;"
        f" {table['settings']['test_images']} test images, float32 top-1 "
        f"{table['float32_top1']:.2%}. Error: root mean square of the outputs' difference to "
        "float32, as a share of their deviation. One column a seed of the draw. Made by `python -m "
        "tools.calibration_size`.",
        "",
        "| images | error, by seed | same class | top-1 |",
        "|---|---|---|---|",
    ]
    for count in sorted({row["images"] for row in rows}):
        same = [row for row in rows if row["images"] == count]
        cells = [
            ", ".join(f"{row[key]:.1%}" for row in same)
            for key in ("rms_error", "agreement", "top1")
        ]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(app())
