"""The models that `tools.accuracy_table` judges: static or per-image, each at a budget of MACs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from slimdeploy import __version__
from slimdeploy.cli.common import load_arrays
from slimdeploy.console import note
from slimdeploy.counts import Shape, ShapeChoice
from slimdeploy.dynamic import Dynamic
from slimdeploy.files import write_text
from slimdeploy.images import ImageFolder
from slimdeploy.macs import dense_macs, schedule_macs
from slimdeploy.schedule import KeepSchedule, Layer, Provenance
from slimdeploy.slim.checkpoint import save_weights
from slimdeploy.slim.choices import ImpactName
from slimdeploy.slim.dynamic import DynamicRequest, dynamic_model, slim_of
from slimdeploy.slim.dynamic.pipeline import DynamicResult
from slimdeploy.slim.pipeline import SlimRequest, SlimResult, slim_model
from slimdeploy.slim.timm_models import load_model
from tools.accuracy_bench import WORK, Bench
from tools.peers import EvitVit, TomeVit, evit_for_budget, peer_macs, tome_for_budget

PerImage = Literal["predictor", "merge", "evit", "tome"]
Estimator = Literal[ImpactName, PerImage]
PEERS: dict[str, tuple[Any, Any]] = {
    "evit": (EvitVit, evit_for_budget),
    "tome": (TomeVit, tome_for_budget),
}


@dataclass(frozen=True)
class Candidate:
    """What a row judges: a slim model, made from the dense model's or other weights.

    Attributes:
        make: the slim model from a dense one.
        weights: the dense models to make it from, by stage; the refitted one starts fine-tuning.
        schedule: of its tokens; a peer, which chooses by image, has one that says nothing.
        about: what the record says beside the accuracy.
    """

    make: Callable[[Any], Any]
    weights: dict[str, Any]
    schedule: KeepSchedule
    about: dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What a row asks for: its key in the record, in the order of the rows."""

    mac_reduction: float
    impact: Estimator
    shape: ShapeChoice
    seed: int
    images: int

    @property
    def name(self) -> str:
        """What its files are called."""
        budget = round(100 * self.mac_reduction)
        return f"{self.impact}-{self.shape}-{budget}-{self.seed}-{self.images}"


def candidate(bench: Bench, wanted: Wanted) -> Candidate:
    """The model of a row, searched and refitted unless that was done before."""
    if wanted.impact == "evit" or wanted.impact == "tome":  # mypy narrows no `in`
        return _peer(bench, wanted.impact, wanted.mac_reduction)
    path = WORK / bench.name / f"{wanted.name}.json"
    spent = path.with_suffix(".seconds")
    if not (path.is_file() and spent.is_file()):
        _search(bench, wanted, path)
    schedule = KeepSchedule.read(path)
    study = bench.study
    refit, _ = load_model(study.model, path.with_suffix(".safetensors"), study.kwargs)
    about = {
        "macs_saved": 1 - schedule_macs(schedule).total / dense_macs(bench.geometry).total,
        "counts": schedule.counts,
        "chosen_shape": schedule.provenance.shape,
        **json.loads(spent.read_text()),
    }
    weights = {"dense_weights": bench.model, "refit": refit}
    return Candidate(lambda dense: slim_of(dense, schedule), weights, schedule, about)


def _peer(bench: Bench, name: str, mac_reduction: float) -> Candidate:
    """A peer's model, which needs no search and has no refit."""
    peer, budget = PEERS[name]
    counts = budget(bench.geometry, mac_reduction)
    saved = 1 - peer_macs(bench.geometry, counts) / dense_macs(bench.geometry).total
    schedule = _schedule(bench, [Layer(keep=(0,))] * bench.geometry.depth)
    about = {"macs_saved": saved, "counts": counts, "chosen_shape": None}
    weights = {"dense_weights": bench.model}
    return Candidate(lambda dense: peer(dense, counts), weights, schedule, about)


def _search(bench: Bench, wanted: Wanted, path: Path) -> None:
    """Write a row's schedule, with refitted weights beside it, and how long both took."""
    folder = ImageFolder.open(bench.study.data, "train").sample(wanted.images, wanted.seed)
    arrays = torch.from_numpy(load_arrays(folder, bench.preprocessing))
    wall, cpu = time.perf_counter(), time.process_time()
    found = _found(bench, wanted, arrays)
    seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    assert found.model is not None
    save_weights(
        found.model,
        path.with_suffix(".safetensors"),
        name=bench.study.model,
        preprocessing=bench.preprocessing,
    )
    dynamic = found.dynamic if isinstance(found, DynamicResult) else None
    _schedule(bench, found.layers, found.shape, dynamic).write(path)
    write_text(path.with_suffix(".seconds"), json.dumps(seconds))


def _found(bench: Bench, wanted: Wanted, images: Tensor) -> SlimResult | DynamicResult:
    """What `slim` finds on these images."""
    if wanted.impact == "predictor" or wanted.impact == "merge":  # mypy narrows no `in`
        dynamic = DynamicRequest(wanted.impact, wanted.mac_reduction, wanted.shape)
        return dynamic_model(bench.model, bench.geometry, images, dynamic, progress=note)
    static = SlimRequest(
        mac_reduction=wanted.mac_reduction,
        impact=cast(ImpactName, wanted.impact),
        shape=wanted.shape,
        seed=wanted.seed,
    )
    return slim_model(bench.model, bench.geometry, images, static, progress=note)


def _schedule(
    bench: Bench,
    layers: Sequence[Layer],
    shape: Shape | None = None,
    dynamic: Dynamic | None = None,
) -> KeepSchedule:
    return KeepSchedule(
        model=bench.geometry,
        preprocessing=bench.preprocessing,
        layers=tuple(layers),
        dynamic=dynamic,
        provenance=Provenance(slimdeploy=__version__, shape=shape),
    )
