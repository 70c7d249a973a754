"""`slim --onnx` on files of two exporters, against `slim --model`.

    python -m tools.file_accuracy --study fashion_mnist --mac-reduction 0.46 --by timm hugging-face

After `python -m tools.accuracy_table run --shape geometric --test-images 2000 ...` for the same
study, budget and number of images, whose model is the other side. Each command draws the same
unlabelled images. The files are judged by ONNX Runtime in float32, the torch models in --amp-dtype.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import numpy as np
import torch
from cyclopts import App, Parameter
from numpy.typing import NDArray

from slimdeploy.console import note, progress_bar
from slimdeploy.engine import open_engine
from slimdeploy.files import write_text
from slimdeploy.graph.files.storage import save_model
from slimdeploy.measure.feeding import infer_all
from slimdeploy.measure.stats import mean_interval
from slimdeploy.schedule import KeepSchedule
from slimdeploy.slim.dense_onnx import OnnxOptions, export_dense
from slimdeploy.slim.dynamic import slim_of
from slimdeploy.slim.options import AmpDtype
from slimdeploy.slim.timm_models import load_model
from tools.accuracy_bench import WORK as ACCURACY
from tools.accuracy_bench import Bench
from tools.accuracy_studies import STUDIES
from tools.file_page import page
from tools.hf_dinov2 import from_timm
from tools.hits import packed

app = App(help="Slimming files of two exporters, measured.")
By = Literal["timm", "hugging-face"]
Chosen = Literal["cover", "predictor", "merge"]
WORK = Path("build/file_accuracy")
RECORD = Path("docs/bench/file_accuracy.json")
Classes = NDArray[np.int64]


def dense_file(bench: Bench, by: By) -> Path:
    """The study's dense model, as one of the exporters writes it."""
    path = WORK / bench.name / f"{by}.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        if by == "timm":
            save_model(export_dense(bench.model, OnnxOptions()), path)
        else:
            _export(from_timm(bench.model), bench.study.img_size, path)
    return path


def _export(model: torch.nn.Module, size: int, path: Path) -> None:
    """As a user would: torch's exporter, an open batch size."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    torch.onnx.export(
        model, (torch.zeros(2, 3, size, size),), path, dynamo=True, external_data=False,
        dynamic_shapes={"images": {0: batch}},
    )  # fmt: skip


def slimmed(
    bench: Bench, by: By, chosen: Chosen, reduction: float, images: int, seed: int
) -> tuple[Path, dict[str, Any]]:
    """The slim file, and what its making took."""
    path = WORK / bench.name / f"{by}-{chosen}-{round(100 * reduction)}-{seed}-{images}.onnx"
    spent = path.with_suffix(".seconds")
    if not (path.is_file() and spent.is_file()):
        mean, std = bench.preprocessing.mean, bench.preprocessing.std
        words = ["slim", "--onnx", str(dense_file(bench, by)), "--data-dir", str(bench.study.data)]
        words += ["--split", "train", "--images", str(images), "--mac-reduction", str(reduction)]
        words += ["--seed", str(seed)]
        words += ["--mean", *map(str, mean), "--std", *map(str, std), "--output", str(path)]
        words += [] if chosen == "cover" else ["--dynamic", chosen]
        write_text(spent, json.dumps(measured(words)))
    return path, json.loads(spent.read_text())


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


def classes(bench: Bench, path: Path) -> Classes:
    """Predicted classes of the test images, [n]; kept beside the file."""
    kept = path.with_suffix(f".{len(bench.test)}.npy")
    if kept.is_file():
        return np.asarray(np.load(kept))
    found = []
    with open_engine(path) as engine, progress_bar() as progress:
        bar = progress.add_task(path.name, total=len(bench.test))
        for batch in bench.test.batches(bench.preprocessing, 50):
            found.append(infer_all(engine, batch.images)[engine.outputs[0].name].argmax(1))
            progress.advance(bar, len(batch.images))
    np.save(kept, np.concatenate(found))
    return np.concatenate(found)


def torch_classes(bench: Bench, name: str) -> Classes:
    """What the refitted torch model of a row of the accuracy table says."""
    path = ACCURACY / bench.name / name
    model, _ = load_model(bench.study.model, path.with_suffix(".safetensors"), bench.study.kwargs)
    schedule = KeepSchedule.read(path.with_suffix(".json"))
    called = f"{name}-refit-{len(bench.test)}-{bench.amp}"
    return bench.predictions(slim_of(model, schedule).eval(), called)


def same_tokens(path: Path, reference: Path) -> float:
    """The share of the kept ids, all layers together, that two schedules have in common.

    Of dynamic ones these are the ids that images keep most often.
    """
    ours, theirs = (KeepSchedule.read(p).layers for p in (path, reference))
    pairs = [({*a.keep}, {*b.keep}) for a, b in zip(ours, theirs, strict=True)]
    return sum(len(a & b) for a, b in pairs) / sum(len(a | b) for a, b in pairs)


def difference(ours: Classes, theirs: Classes, labels: Classes) -> list[float]:
    """Of top-1, ours less theirs in points, with its 95 % interval (paired bootstrap)."""
    gain = (ours == labels).astype(np.float64) - (theirs == labels)
    interval = mean_interval(gain, seed=0)
    return [round(100 * x, 2) for x in (float(gain.mean()), interval.low, interval.high)]


@app.default
def table(
    *,
    study: str,
    mac_reduction: Annotated[list[float], Parameter(consume_multiple=True)],
    by: Annotated[list[By], Parameter(consume_multiple=True)],
    chosen_by: Chosen = "cover",
    images: int = 192,
    seed: Annotated[list[int], Parameter(consume_multiple=True)] = [0],  # noqa: B006
    test_images: int = 2000,
    amp_dtype: AmpDtype = "bfloat16",
) -> None:
    """Measure rows and add them to the page.

    Args:
        chosen_by: what ranks the tokens; predictor and merge are --dynamic, decided per image.
        seed: which training images the search and the refit see.
        amp_dtype: what torch computes in, the dense model and the slim one.
    """
    bench = Bench(study, STUDIES[study], test_images, amp_dtype)
    for reduction, drawn in product(mac_reduction, seed):
        name = f"{chosen_by}-geometric-{round(100 * reduction)}-{drawn}-{images}"
        torch_side = torch_classes(bench, name)
        for exporter in by:
            path, spent = slimmed(bench, exporter, chosen_by, reduction, images, drawn)
            ours, theirs = path.with_suffix(".json"), ACCURACY / study / f"{name}.json"
            found = classes(bench, path)
            _record(
                {
                    "study": study,
                    "mac_reduction": reduction,
                    "by": exporter,
                    "chosen_by": chosen_by,
                    "fitted": images,
                    "seed": drawn,
                    "images": len(bench.test),
                    "torch_in": amp_dtype,
                    "top1": float((found == bench.labels).mean()),
                    "to_dense": difference(found, bench.dense, bench.labels),
                    "to_torch": difference(found, torch_side, bench.labels),
                    "same_class_as_torch": float((found == torch_side).mean()),
                    "same_tokens": same_tokens(ours, theirs),
                    "right": packed(found == bench.labels),
                    "dense_right": packed(bench.dense == bench.labels),
                    **spent,
                }
            )


def _record(row: dict[str, Any]) -> None:
    rows = json.loads(RECORD.read_text()) if RECORD.is_file() else []
    rows = sorted([*(r for r in rows if _key(r) != _key(row)), row], key=_key)
    write_text(RECORD, json.dumps(rows, indent=1) + "\n")
    write_text(RECORD.with_suffix(".md"), page(rows))
    note(json.dumps(row))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(
        row[name] for name in ("study", "chosen_by", "mac_reduction", "fitted", "by", "seed")
    )


if __name__ == "__main__":
    app()
