"""Make, prove, judge and time the points of a sweep; go on where a run was killed.

A finished point is one record in its folder, written last, and so is its timing: whatever lacks one
is done again. A record counts only if it was made with the settings that are asked for now.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from slimdeploy.cli.common import open_images
from slimdeploy.cli.evaluate import measure
from slimdeploy.cli.profile import compare
from slimdeploy.cli.sweep.points import Point, Timing
from slimdeploy.cli.sweep.sources import Made, Source
from slimdeploy.console import note
from slimdeploy.engine.protocol import EngineInfo
from slimdeploy.errors import InputError, one_line
from slimdeploy.files import read_bytes, write_text
from slimdeploy.images import ImageFolder
from slimdeploy.macs import dense_macs, schedule_macs
from slimdeploy.measure.accuracy import Accuracy, compare_accuracy, count
from slimdeploy.measure.host import cpu_name
from slimdeploy.measure.onnx_file import model_digest
from slimdeploy.measure.predictions import write_predictions
from slimdeploy.measure.sweep import SweepGroup, SweepLatency, SweepPoint, group_points
from slimdeploy.preprocessing import first_problem

_BATCH = 32


@dataclass(frozen=True)
class Sweep:
    """What a sweep is made of.

    Attributes:
        source: the dense model.
        points: the slim models to make.
        folder: where everything goes.
        test: the images that judge.
        timing: None leaves the latency out.
        settings: what every point depends on.
    """

    source: Source
    points: Sequence[Point]
    folder: Path
    test: ImageFolder
    timing: Timing | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class Swept:
    """What came of it: the dense model, every point, and the points of all seeds together."""

    dense_file: Path
    dense: Accuracy
    points: list[SweepPoint]
    groups: list[SweepGroup]
    protocol: dict[str, Any] | None


def run_sweep(sweep: Sweep) -> Swept:
    """Do what is not done yet.

    Raises:
        SlimdeployError: as the verbs; finished points stay.
    """
    dense_file, dense = _dense(sweep)
    found, protocol, begun = [], None, perf_counter()
    made = 0
    for index, point in enumerate(sweep.points):
        label = f"point {index + 1} of {len(sweep.points)}: {point}"
        done = _finished(sweep, point)
        if done is None:
            left = (perf_counter() - begun) / made * (len(sweep.points) - index) if made else None
            note(label + ("" if left is None else f" (about {left / 60:.0f} min left)"))
            done, made = _make(sweep, point, dense), made + 1
        else:
            note(f"{label}: done before")
        if sweep.timing is not None:
            rows, protocol = _timed(sweep, sweep.timing, point, dense_file)
            done = done.model_copy(update={"latency": rows})
        found.append(done)
    right = {p.name: _right(sweep.folder / "points" / p.name / "predictions.npz") for p in found}
    groups = group_points(found, right, dense.predictions == dense.labels)
    return Swept(dense_file, dense, found, groups, protocol)


def _dense(sweep: Sweep) -> tuple[Path, Accuracy]:
    """The dense file and its accuracy, measured once."""
    mark, saved = sweep.folder / "dense.json", sweep.folder / "dense.npz"
    before = _read(mark) if mark.is_file() and saved.is_file() else {}
    file = Path(str(before.get("file", "")))
    fresh = before.get("settings") == sweep.settings and file.is_file()
    if fresh and model_digest(file) == before.get("sha256"):
        with _named_if_damaged(saved), np.load(saved) as held:
            logits: NDArray[np.float32] = held["logits"]
        with _named_if_damaged(mark):
            engine = EngineInfo(**before["engine"])
        return file, count(engine, sweep.test, sweep.source.preprocessing, logits)
    file = sweep.source.dense(sweep.folder)
    found = measure(file, sweep.test, sweep.source.preprocessing, _BATCH, None)
    write_predictions(saved, found)
    record = {"settings": sweep.settings, "file": str(file), "sha256": model_digest(file)}
    write_text(mark, json.dumps({**record, "engine": found.engine.to_json()}, indent=2) + "\n")
    return file, found


def _finished(sweep: Sweep, point: Point) -> SweepPoint | None:
    """The point's record, if it is done and was made with these settings."""
    folder = sweep.folder / "points" / point.name
    path = folder / "point.json"
    if not path.is_file() or not (folder / "predictions.npz").is_file():
        return None
    record = _read(path)
    if record.get("settings") != _settings(sweep, point):
        return None
    try:
        found = SweepPoint.model_validate(record.get("point"))
    except ValidationError as error:
        raise InputError(f"{path}: point.{first_problem(error)}; remove it") from error
    return found if (sweep.folder / found.files["onnx"]).is_file() else None


def _settings(sweep: Sweep, point: Point) -> dict[str, Any]:
    """The shared settings and the images that the point's seed draws."""
    c = sweep.source.shared
    drawn = open_images(c.data_dir, c.split, "train", labelled=False).sample(c.images, point.seed)
    return {**sweep.settings, "calibration_images": drawn.digest()}


def _make(sweep: Sweep, point: Point, dense: Accuracy) -> SweepPoint:
    folder, start = sweep.folder / "points" / point.name, perf_counter()
    (folder / "point.json").unlink(missing_ok=True)
    made = sweep.source.make(point, folder)
    slim = measure(made.slim, sweep.test, sweep.source.preprocessing, _BATCH, None)
    write_predictions(folder / "predictions.npz", slim)
    made.files["predictions"] = folder / "predictions.npz"
    found = _point(sweep, point, made, dense, slim, perf_counter() - start)
    record = {"settings": _settings(sweep, point), "point": found.model_dump(mode="json")}
    write_text(folder / "point.json", json.dumps(record, indent=2) + "\n")
    return found


def _point(
    sweep: Sweep, point: Point, made: Made, dense: Accuracy, slim: Accuracy, seconds: float
) -> SweepPoint:
    compared = compare_accuracy(dense, slim)
    files = {role: path.relative_to(sweep.folder).as_posix() for role, path in made.files.items()}
    macs = schedule_macs(made.schedule).total
    return SweepPoint(
        name=point.name,
        impact=point.impact,
        seed=point.seed,
        wanted=point.wanted,
        mac_reduction=1 - macs / dense_total(sweep.source),
        macs=macs,
        counts=tuple(made.schedule.counts),
        top1=slim.top1,
        top1_interval=slim.top1_interval,
        difference=compared.difference,
        difference_interval=compared.difference_interval,
        agreement=compared.agreement,
        mcnemar_p=compared.mcnemar_p,
        kl_divergence=compared.kl_divergence,
        cross_entropy=slim.cross_entropy,
        calibration_errors={x.binning: x for x in slim.calibration_errors},
        parity=made.parity,
        files=files,
        seconds=round(seconds, 1),
    )


def dense_total(source: Source) -> int:
    """The dense model's MACs for one image."""
    return dense_macs(source.geometry).total


def _timed(
    sweep: Sweep, timing: Timing, point: Point, dense: Path
) -> tuple[tuple[SweepLatency, ...], dict[str, Any]]:
    """Paired latency of dense and slim, and its protocol; measured unless it was, here."""
    folder = sweep.folder / "points" / point.name
    slim, path = folder / "slim.onnx", folder / "latency.json"
    files = {"dense": model_digest(dense), "slim": model_digest(slim)}
    asked = {**timing.to_json(), "cpu": cpu_name(), "files": files}
    record = _read(path) if path.is_file() else {}
    if record.get("settings") != asked:
        sizes, load = list(timing.batch_sizes), round(os.getloadavg()[0], 1)
        compared = compare(dense, slim, sizes, timing.threads, timing.rounds)
        # Through JSON, so that a run that was killed gives the same record as one that was not.
        fresh = {"settings": asked, "load": load, "latency": compared.to_json()}
        record = json.loads(json.dumps(fresh))
        write_text(path, json.dumps(record, indent=2) + "\n")
    with _named_if_damaged(path):
        found = record["latency"]
        return tuple(_latency(row, record.get("load")) for row in found["rows"]), found["protocol"]


def _latency(row: dict[str, Any], load: float | None) -> SweepLatency:
    return SweepLatency(
        batch_size=row["batch_size"],
        rounds=row["rounds"],
        load=load,
        speedup=row["speedup"],
        speedup_interval=row["speedup_interval"],
        dense_median_ms=row["dense"]["median_ms"],
        slim_median_ms=row["slim"]["median_ms"],
    )


def _right(path: Path) -> NDArray[np.bool_]:
    with _named_if_damaged(path), np.load(path) as held:
        right: NDArray[np.bool_] = held["logits"].argmax(axis=1) == held["labels"]
    return right


def _read(path: Path) -> dict[str, Any]:
    with _named_if_damaged(path):
        return dict(json.loads(read_bytes(path)))


@contextmanager
def _named_if_damaged(path: Path) -> Iterator[None]:
    """Raise an InputError that names the file where it does not hold what a sweep wrote."""
    try:
        yield
    except (KeyError, TypeError, ValueError, EOFError, BadZipFile) as error:
        reason = one_line(error, 80)
        raise InputError(f"{path}: not what a sweep wrote ({reason}); remove it") from error
