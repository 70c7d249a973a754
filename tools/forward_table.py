"""Slimming from forward passes alone, measured: top-1 of each impact, without and with the refit.

    python -m tools.forward_table --minutes 40

Every row draws its own calibration images (seeded) from the training split, without labels. The
ONNX rows are what `slim --onnx` computes, from the file that `export` writes; the torch rows are
what `slim --model` computes from the same images. Validation and test images are looked at here
only; `cover` was made the default after rows of seed 0 were seen. Each finished row is kept in the
JSON file, so that a run that was stopped goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import timm
import torch
from cyclopts import App
from numpy.typing import NDArray

from slimdeploy.cli import main as slimdeploy
from slimdeploy.cli.common import load_arrays, open_images
from slimdeploy.cli.onnx_source import DenseFile, open_dense
from slimdeploy.console import note
from slimdeploy.files import write_text
from slimdeploy.forward.running import feed_of, open_whole
from slimdeploy.forward.slimming import ForwardRequest, slim_forward
from slimdeploy.graph import slim_graph
from slimdeploy.graph.storage import save_model
from slimdeploy.images import ImageFolder
from slimdeploy.measure.stats import mean_interval
from slimdeploy.slim.accuracy import torch_logits
from slimdeploy.slim.dense_onnx import export_dense
from slimdeploy.slim.model import SlimVit
from slimdeploy.slim.pipeline import SlimRequest, slim_model
from slimdeploy.slim.timm_models import describe, load_model
from tools.hits import packed, unpacked

app = App(help="Compare ways of slimming an ONNX file by forward passes.")

FORWARD = ("grid", "random", "path", "cover", "attention", "class-attention", "centre")
TORCH = ("cover", "joint", "grid", "path")
SPLITS = ("val", "test")


@dataclass(frozen=True)
class Bench:
    """What all rows share: the dense model twice, and the images that judge."""

    dense: DenseFile
    model: Any
    name: str
    preprocessing: Any
    train: ImageFolder
    images: int
    arrays: dict[str, NDArray[np.float32]]
    labels: dict[str, NDArray[np.int64]]

    def calibration(self, seed: int) -> NDArray[np.float32]:
        """The images that a seed draws."""
        return load_arrays(self.train.sample(self.images, seed), self.preprocessing)

    def judge(self, model: onnx.ModelProto) -> dict[str, str]:
        """Which images of each split an ONNX graph gets right, as hexadecimal bits."""
        result = {}
        with open_whole(model) as part:
            for split in SPLITS:
                feed = feed_of(model, self.arrays[split], 16)
                logits = np.concatenate([next(iter(x.values())) for _, x in feed.run(part)])
                result[split] = packed(logits.argmax(1) == self.labels[split])
        return result

    def judge_torch(self, model: Any) -> dict[str, str]:
        """The same of a torch model."""
        return {
            split: packed(torch_logits(model, self.arrays[split]).argmax(1) == self.labels[split])
            for split in SPLITS
        }


def onnx_row(bench: Bench, impact: Any, reduction: float, seed: int) -> dict[str, Any]:
    """`slim --onnx` on one draw of images."""
    request = ForwardRequest(mac_reduction=reduction, impact=impact, seed=seed)
    images, start = bench.calibration(seed), perf_counter()
    found = slim_forward(bench.dense.model, bench.dense.geometry, images, request)
    seconds = perf_counter() - start
    plain = slim_graph(bench.dense.model, [layer.keep for layer in found.layers]).model
    judged = {"dense_weights": bench.judge(plain), "refit": bench.judge(found.model)}
    return {"seconds": round(seconds, 1), **judged}


def torch_row(bench: Bench, impact: Any, reduction: float, seed: int) -> dict[str, Any]:
    """`slim --model` on the same draw."""
    request = SlimRequest(mac_reduction=reduction, impact=impact, seed=seed)
    images, start = torch.from_numpy(bench.calibration(seed)), perf_counter()
    found = slim_model(bench.model, describe(bench.model, bench.name), images, request)
    seconds = perf_counter() - start
    keep = [list(layer.keep) for layer in found.layers]
    return {
        "seconds": round(seconds, 1),
        "dense_weights": bench.judge_torch(SlimVit(bench.model, keep).eval()),
        "refit": bench.judge_torch(SlimVit(found.model, keep).eval()),
    }


def wanted(reductions: list[float], seeds: int) -> list[tuple[str, str, float, int]]:
    """Path, impact, reduction and seed of each row, what matters most first."""
    rows = [
        (path, impact, reduction, seed)
        for path, impacts in (("onnx", FORWARD), ("torch", TORCH))
        for impact in impacts
        for reduction in reductions
        for seed in range(seeds)
    ]
    return sorted(rows, key=_priority)


def _priority(row: tuple[str, str, float, int]) -> tuple[int, float, int]:
    """First one seed of the main impacts, then their other seeds, then all else."""
    path, impact, reduction, seed = row
    order = (FORWARD if path == "onnx" else TORCH).index(impact)
    main = path == "onnx" and order < 4
    early = (path == "onnx" and order < 6) or reduction <= 0.46
    return (0 if main and not seed else 1 if early and not seed else 2 if main else 3 + seed,
            reduction, order)  # fmt: skip


@app.default
def main(
    *,
    output: Path = Path("docs/bench/forward"),
    model: str = "vit_tiny_patch16_224",
    checkpoint: Path = Path("models/elpv_vit_tiny/model.safetensors"),
    data_dir: Path = Path("build/elpv"),
    work_dir: Path = Path("build/forward"),
    reductions: tuple[float, ...] = (0.46, 0.54, 0.60),
    seeds: int = 3,
    images: int = 256,
    impacts: tuple[str, ...] = (),
    minutes: float = 600.0,
) -> None:
    """Make the table: OUTPUT.json holds the rows, OUTPUT.md shows them.

    Args:
        seeds: draws of images.
        images: how many in each.
        impacts: measure rows of these only (default: of all); what is there already stays.
        minutes: begin no row after so many.
    """
    start, path = perf_counter(), output.with_suffix(".json")
    bench = _bench(model, checkpoint, data_dir, work_dir, images)
    settings = {
        "command": "python -m tools.forward_table",
        "model": model,
        "images": images,
        "counts": {split: len(bench.labels[split]) for split in SPLITS},
    }
    before = json.loads(path.read_text()) if path.is_file() else {}
    same = before.get("settings") == settings
    table: dict[str, Any] = {"settings": settings, "dense": bench.judge(bench.dense.model)}
    table["rows"] = before["rows"] if same else []
    table["times"] = before.get("times", [])
    done = {(r["path"], r["impact"], r["mac_reduction"], r["seed"]) for r in table["rows"]}
    for key in wanted(list(reductions), seeds):
        if key in done or (impacts and key[1] not in impacts):
            continue
        if perf_counter() - start > 60 * minutes:
            note("time is up; run it again to go on")
            break
        make = onnx_row if key[0] == "onnx" else torch_row
        names = dict(zip(("path", "impact", "mac_reduction", "seed"), key, strict=True))
        table["rows"].append({**names, **make(bench, *key[1:])})
        note(f"{key}: {table['rows'][-1]['seconds']} s")
        write_text(path, json.dumps(table, indent=1) + "\n")
        write_text(output.with_suffix(".md"), markdown(table))


@app.command
def time(
    *,
    output: Path = Path("docs/bench/forward"),
    model: str = "vit_small_patch16_224",
    data_dir: Path = Path("build/elpv"),
    work_dir: Path = Path("build/forward"),
    images: int = 256,
    impacts: tuple[str, ...] = ("grid", "cover", "path"),
) -> None:
    """Time the command on a larger model of random weights; what is measured joins the table."""
    file, path = work_dir / f"{model}.onnx", output.with_suffix(".json")
    torch.manual_seed(0)
    save_model(export_dense(timm.create_model(model).eval()), file)
    words = ["slim", "--onnx", str(file), "--data-dir", str(data_dir), "--mac-reduction", "0.46"]
    words += ["--mean", *["0.5"] * 3, "--std", *["0.5"] * 3, "--images", str(images)]
    table = json.loads(path.read_text())
    times = {(t["model"], t["impact"]): t for t in table.get("times", [])}
    for impact in impacts:
        command = [*words, "--impact", impact, "--output", str(work_dir / "timed.onnx")]
        row = {"model": model, "impact": impact, "images": images, **measured(command)}
        times[model, impact] = row
        note(json.dumps(row))
        table["times"] = list(times.values())
        write_text(path, json.dumps(table, indent=1) + "\n")
        write_text(output.with_suffix(".md"), markdown(table))


def measured(words: list[str]) -> dict[str, Any]:
    """Seconds, peak memory and the load of the machine while a command runs."""
    program = [sys.executable, "-m", "slimdeploy", *words]
    start = perf_counter()
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        _, status, used = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode:
        raise SystemExit(f"slimdeploy {' '.join(words)} failed")
    return {
        "seconds": round(perf_counter() - start, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1024),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
    }


def _bench(name: str, checkpoint: Path, data: Path, work: Path, images: int) -> Bench:
    file = work / "dense.onnx"
    words = ["--model", name, "--checkpoint", str(checkpoint), "--output", str(file)]
    slimdeploy(["export", *words])
    model, preprocessing = load_model(name, checkpoint)
    splits = {split: open_images(data, split, split) for split in SPLITS}
    return Bench(
        dense=open_dense(file),
        model=model,
        name=name,
        preprocessing=preprocessing,
        train=open_images(data, None, "train", labelled=False),
        images=images,
        arrays={s: load_arrays(folder, preprocessing) for s, folder in splits.items()},
        labels={s: np.array(folder.labels) for s, folder in splits.items()},
    )


def markdown(table: dict[str, Any]) -> str:
    """The rows, mean over seeds."""
    settings, counts = table["settings"], table["settings"]["counts"]
    dense = {s: unpacked(table["dense"][s], n).mean() for s, n in counts.items()}
    lines = [
        "# Slimming an ONNX file by forward passes alone",
        "",
        f"`{settings['model']}` of `models/elpv_vit_tiny`, {settings['images']} unlabelled "
        f"training images a draw, geometric counts; {counts['val']} validation and "
        f"{counts['test']} test images; dense top-1 {dense['val']:.2%} and {dense['test']:.2%}. "
        "`onnx`: `slim --onnx`, without torch; `torch`: `slim --model`. Mean over seeds (draws of "
        "images). In brackets: difference to dense on the test split in points, with its 95 % "
        f"interval (paired bootstrap over images). Made by `{settings['command']}`, which goes "
        "on where it stopped.",
    ]
    for reduction in sorted({r["mac_reduction"] for r in table["rows"]}):
        lines += ["", f"## {reduction:.0%} fewer MACs", ""]
        lines += [
            "| impact | by | seeds | dense weights: val | test | after refit: val | test |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += _lines(table, reduction)
    return "\n".join([*lines, *_times(table)]) + "\n"


def _times(table: dict[str, Any]) -> list[str]:
    if not table.get("times"):
        return []
    lines = [
        "",
        "## Time and memory of `slim --onnx`",
        "",
        "Random weights, 46 % fewer MACs, the whole command; 64 of the images are searched. CPU "
        "seconds are of all cores together; the load is the system's mean over the last minute, "
        "this command included: above the number of cores, others took part of them. Made by "
        "`python -m tools.forward_table time`.",
        "",
        "| model | impact | images | seconds | CPU seconds | peak memory, MB | cores | load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = ("model", "impact", "images", "seconds", "cpu_seconds", "peak_mb", "cores", "load")
    for row in table["times"]:
        lines.append("| " + " | ".join(str(row[name]) for name in names) + " |")
    return lines


def _lines(table: dict[str, Any], reduction: float) -> list[str]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table["rows"]:
        if row["mac_reduction"] == reduction:
            groups.setdefault((row["path"], row["impact"]), []).append(row)
    shown = []
    for (by, impact), rows in sorted(groups.items()):
        seeds = ", ".join(str(row["seed"]) for row in rows)
        cells = [impact, by, seeds]
        for stage in ("dense_weights", "refit"):
            cells += [_cell(table, rows, stage, split) for split in SPLITS]
        shown.append("| " + " | ".join(cells) + " |")
    return shown


def _cell(table: dict[str, Any], rows: list[dict[str, Any]], stage: str, split: str) -> str:
    count = table["settings"]["counts"][split]
    right = np.mean([unpacked(row[stage][split], count) for row in rows], axis=0)
    if split != "test":
        return f"{right.mean():.2%}"
    gain = right - unpacked(table["dense"][split], count)
    found = mean_interval(gain, seed=0)
    difference = 100 * float(gain.mean())
    return (
        f"{right.mean():.2%} ({difference:+.1f}; {100 * found.low:+.1f} to {100 * found.high:+.1f})"
    )


if __name__ == "__main__":
    app()
