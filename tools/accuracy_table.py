"""What slimming costs in accuracy, by data set, budget and estimator, at equal MACs.

    python -m tools.accuracy_table run --study fashion_mnist --mac-reduction 0.46 --impact cover
    python -m tools.accuracy_table run ... --stages finetuned   # adds that stage to the row
    python -m tools.accuracy_table render                # docs/bench/accuracy/*.json -> .md, .png

A row is one search (its seed draws the calibration images too), judged on test images with the
dense model's weights, after the refit, and after fine-tuning if asked for. Schedules and weights
stay in `build/accuracy/`, so that a killed run goes on; each judged stage is committed to the JSON
file at once. The test split is looked at here only; nothing is chosen by it.
"""

from __future__ import annotations

import copy
import fcntl
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from cyclopts import App, Parameter
from numpy.typing import NDArray

from slimdeploy import __version__
from slimdeploy.cli.common import load_arrays
from slimdeploy.console import note
from slimdeploy.counts import ShapeChoice
from slimdeploy.files import write_text
from slimdeploy.images import ImageFolder
from slimdeploy.macs import dense_macs
from slimdeploy.macs import mac_reduction as macs_saved
from slimdeploy.schedule import KeepSchedule, Layer, Provenance
from slimdeploy.slim.accuracy import torch_logits
from slimdeploy.slim.checkpoint import save_weights
from slimdeploy.slim.choices import ImpactName
from slimdeploy.slim.finetune import Finetuner
from slimdeploy.slim.model import SlimVit
from slimdeploy.slim.options import AmpDtype, FinetuneOptions
from slimdeploy.slim.pipeline import SlimRequest, slim_model
from slimdeploy.slim.timm_models import describe, load_model
from tools.hits import packed
from tools.peers import EvitVit, TomeVit, evit_for_budget, peer_macs, tome_for_budget
from tools.remembered import Remembered

app = App(help="What slimming costs in accuracy, at equal MACs.")
RECORDS = Path("docs/bench/accuracy")
WORK = Path("build/accuracy")
Stage = Literal["dense_weights", "refit", "finetuned", "finetuned_longer"]
Peer = Literal["evit", "tome"]
Estimator = Literal[ImpactName, Peer]
PEERS: dict[Peer, tuple[Any, Any]] = {
    "evit": (EvitVit, evit_for_budget),
    "tome": (TomeVit, tome_for_budget),
}
_FREE: list[Stage] = ["refit", "dense_weights"]
LONGER = 4
"""Steps of `finetuned_longer` in those of `finetuned`."""


@dataclass(frozen=True)
class Study:
    """A dense model on a data set, and how its slim models are fine-tuned."""

    title: str
    model: str
    checkpoint: Path
    data: Path
    img_size: int
    finetune: FinetuneOptions
    kwargs: dict[str, int] = field(default_factory=dict)


# Taught by the dense model alone, in steps proportional to each weight: chosen on Fashion-MNIST's
# validation images, by the divergence from the dense model's outputs.
RECIPE: dict[str, Any] = {
    "relative_lr": True, "lr": 3e-4, "task_loss_weight": 0.0, "min_scale": 0.9,
    "amp_dtype": "bfloat16",
}  # fmt: skip
STUDIES = {
    "fashion_mnist": Study(
        "Fashion-MNIST, DINOv2 ViT-S/14 at 196 x 196 (196 + 1 tokens)",
        "vit_small_patch14_dinov2",
        Path("build/fm/dense.safetensors"),
        Path("build/fashion_mnist"),
        196,
        FinetuneOptions(
            epochs=1, max_steps=200, batch_size=64, warmup_epochs=0.02, color_jitter=0.0, **RECIPE
        ),
        {"img_size": 196},
    ),
    "elpv_vit_small": Study(
        "ELPV solar cells, DINOv2 ViT-S/14 at 224 x 224 (256 + 1 tokens)",
        "vit_small_patch14_dinov2",
        Path("build/elpv_vit_small/dense.safetensors"),
        Path("build/elpv"),
        224,
        FinetuneOptions(epochs=2, warmup_epochs=0.2, vflip=0.5, color_jitter=0.1, **RECIPE),
        {"img_size": 224},
    ),
    "elpv_vit_tiny": Study(
        "ELPV solar cells, ViT-Ti/16 of `models/elpv_vit_tiny` (196 + 1 tokens)",
        "vit_tiny_patch16_224",
        Path("models/elpv_vit_tiny/model.safetensors"),
        Path("build/elpv"),
        224,
        FinetuneOptions(epochs=2, warmup_epochs=0.2, vflip=0.5, color_jitter=0.1, **RECIPE),
    ),
}


@dataclass
class Bench:
    """A study at work: its dense model, its test images, and what the dense model says of them."""

    name: str
    study: Study
    test_images: int
    amp: AmpDtype
    device: str = "cpu"

    def __post_init__(self) -> None:
        study = self.study
        self.model, self.preprocessing = load_model(study.model, study.checkpoint, study.kwargs)
        self.geometry = describe(self.model, study.model, study.kwargs)
        test = ImageFolder.open(study.data, "test")
        self.test = test.sample(min(self.test_images, len(test)), seed=0)
        self.labels = np.array(self.test.labels)
        self.dense = self.predictions(self.model, f"dense-{len(self.test)}-{self.amp}")

    def predictions(self, model: Any, name: str) -> NDArray[np.int64]:
        """Predicted classes of the test images, [n]; kept by name."""
        kept = WORK / self.name / f"{name}.npy"
        if kept.is_file():
            return np.asarray(np.load(kept))
        judged = copy.deepcopy(model).to(self.device)
        found = [
            torch_logits(judged, batch.images, self.device, 64, self.amp).argmax(1)
            for batch in self.test.batches(self.preprocessing, 64)
        ]
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, np.concatenate(found))
        return np.concatenate(found)

    def judge(self, slim: Any, name: str) -> dict[str, Any]:
        """Which of the `n` test images it gets right and of which it says what dense says."""
        found = self.predictions(slim.eval(), f"{name}-{len(self.test)}-{self.amp}")
        right, agrees = found == self.labels, found == self.dense
        return {
            "n": len(right),
            "top1": float(right.mean()),
            "agreement": float(agrees.mean()),
            "right": packed(right),
            "agrees": packed(agrees),
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


@app.command
def run(
    *,
    study: str,
    mac_reduction: float,
    impact: Estimator,
    shape: ShapeChoice = "auto",
    seed: int = 0,
    images: int = 192,
    test_images: int = 10000,
    stages: Annotated[list[Stage], Parameter(consume_multiple=True)] = _FREE,
    amp_dtype: AmpDtype = "bfloat16",
    device: str = "cpu",
    workers: int = 2,
) -> None:
    """Measure one row, or what of it is not yet measured.

    Args:
        impact: the estimator; or a peer, evit or tome, which has no refit: --stages dense_weights.
        device: where it is fine-tuned and judged; the search and the refit run on the CPU.
        workers: processes that load images for the fine-tuning.
    """
    bench = Bench(study, STUDIES[study], test_images, amp_dtype, device)
    name = f"{impact}-{shape}-{round(100 * mac_reduction)}-{seed}-{images}"
    key = {"mac_reduction": mac_reduction, "impact": impact, "shape": shape, "seed": seed}
    key["images"] = images
    if impact == "evit" or impact == "tome":  # mypy narrows no `in`
        found = _peer(bench, impact, mac_reduction)
    else:
        request = SlimRequest(mac_reduction=mac_reduction, impact=impact, shape=shape, seed=seed)
        found = _slimmed(bench, name, request, images)
    about = found.about
    for stage in stages:
        called = f"{name}-{stage}"
        if stage == "finetuned" or stage == "finetuned_longer":
            options = replace(recipe(bench.study, stage, seed), device=device, workers=workers)
            digest = sha256(json.dumps(options.identity()).encode()).hexdigest()[:8]
            called = f"{name}-finetuned-{digest}"
            weights = _finetuned(bench, found, options, WORK / study / f"{called}.safetensors")
            told = {"recipe": options.identity(), **_seconds(study, called)}
            suffix = stage.removeprefix("finetuned")
            about |= {f"{field}{suffix}": value for field, value in told.items()}
        else:
            weights = found.weights[stage]
        judged = bench.judge(found.make(weights), called)
        record(bench, key, {**about, stage: judged})


def recipe(study: Study, stage: Stage, seed: int) -> FinetuneOptions:
    """How a stage is fine-tuned."""
    options = replace(study.finetune, seed=seed)
    if stage == "finetuned":
        return options
    if options.max_steps is None:
        return replace(options, epochs=LONGER * options.epochs)
    return replace(options, max_steps=LONGER * options.max_steps)


def _seconds(study: str, called: str) -> dict[str, float]:
    spent: dict[str, float] = json.loads((WORK / study / f"{called}.seconds").read_text())
    return spent


def _peer(bench: Bench, name: Peer, mac_reduction: float) -> Candidate:
    """A model that chooses or merges tokens by image, at the same MACs."""
    peer, budget = PEERS[name]
    counts = budget(bench.geometry, mac_reduction)
    saved = 1 - peer_macs(bench.geometry, counts) / dense_macs(bench.geometry).total
    schedule = KeepSchedule(
        model=bench.geometry,
        preprocessing=bench.preprocessing,
        layers=(Layer(keep=(0,)),) * bench.geometry.depth,
        provenance=Provenance(slimdeploy=__version__),
    )
    about = {"macs_saved": saved, "counts": counts, "chosen_shape": None}
    weights = {"dense_weights": bench.model}
    return Candidate(lambda dense: peer(dense, counts), weights, schedule, about)


def _slimmed(bench: Bench, name: str, request: SlimRequest, images: int) -> Candidate:
    """A model of static positions, before and after the refit."""
    schedule, seconds = _searched(bench, name, request, images)
    keep = [list(layer.keep) for layer in schedule.layers]
    refit, _ = load_model(
        bench.study.model, WORK / bench.name / f"{name}.safetensors", bench.study.kwargs
    )
    about = {
        "macs_saved": macs_saved(bench.geometry, schedule.counts),
        "counts": schedule.counts,
        "chosen_shape": schedule.provenance.shape,
        **seconds,
    }
    weights = {"dense_weights": bench.model, "refit": refit}
    return Candidate(lambda dense: SlimVit(dense, keep), weights, schedule, about)


def _searched(
    bench: Bench, name: str, request: SlimRequest, images: int
) -> tuple[KeepSchedule, dict[str, float]]:
    """The row's schedule, with refitted weights beside it, and how long both took."""
    path = WORK / bench.name / f"{name}.json"
    spent = path.with_suffix(".seconds")
    if path.is_file() and spent.is_file():
        return KeepSchedule.read(path), json.loads(spent.read_text())
    folder = ImageFolder.open(bench.study.data, "train").sample(images, request.seed)
    arrays = torch.from_numpy(load_arrays(folder, bench.preprocessing))
    wall, cpu = time.perf_counter(), time.process_time()
    found = slim_model(bench.model, bench.geometry, arrays, request, progress=note)
    seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    schedule = KeepSchedule(
        model=bench.geometry,
        preprocessing=bench.preprocessing,
        layers=tuple(found.layers),
        provenance=Provenance(slimdeploy=__version__, shape=found.shape),
    )
    assert found.model is not None
    save_weights(
        found.model,
        path.with_suffix(".safetensors"),
        name=bench.study.model,
        preprocessing=bench.preprocessing,
    )
    schedule.write(path)
    write_text(spent, json.dumps(seconds))
    return schedule, seconds


def _finetuned(bench: Bench, found: Candidate, options: FinetuneOptions, path: Path) -> Any:
    """The dense model with fine-tuned weights, trained unless the file is there."""
    if not path.is_file():
        runner = Finetuner(
            bench.model,
            found.weights.get("refit", bench.model),
            found.schedule,
            ImageFolder.open(bench.study.data, "train"),
            bench.preprocessing,
            options,
            state_path=path.with_suffix(".state"),
            make_slim=lambda dense, _: found.make(dense),
        )
        answers = WORK / bench.name / f"answers-{options.amp_dtype}"
        task: Any = runner.task
        task._ask_teacher = teacher = Remembered(task._ask_teacher, answers)
        cpu, wall = time.process_time(), time.perf_counter()
        model = runner.run()
        spent: dict[str, Any] = {"finetune_cpu_seconds": time.process_time() - cpu + teacher.saved}
        if options.device != "cpu":  # a teacher that remembers makes it shorter for later rows
            spent = {f"finetune_{options.device}_seconds": time.perf_counter() - wall}
        write_text(path.with_suffix(".seconds"), json.dumps(spent))
        save_weights(model, path, name=bench.study.model, preprocessing=bench.preprocessing)
        runner.finished()
    return load_model(bench.study.model, path, bench.study.kwargs)[0]


def record(bench: Bench, key: dict[str, Any], found: dict[str, Any]) -> None:
    """Add what was measured to the study's JSON file."""
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "lock").open("w") as lock:  # two runs may share the file
        fcntl.flock(lock, fcntl.LOCK_EX)
        _add(RECORDS / f"{bench.name}.json", bench, key, found)
    note(json.dumps({k: v for k, v in found.items() if not isinstance(v, dict)}))


def _add(path: Path, bench: Bench, key: dict[str, Any], found: dict[str, Any]) -> None:
    before = json.loads(path.read_text()) if path.is_file() else {"dense": {}, "rows": []}
    rows, dense = before["rows"], before["dense"]
    dense[str(len(bench.test))] = packed(bench.dense == bench.labels)
    row = next((r for r in rows if all(r[k] == v for k, v in key.items())), None)
    if row is None:
        rows.append(row := dict(key))
    row.update(found)
    rows.sort(key=lambda r: tuple(r[field] for field in key))
    whole = {"study": bench.study.title, "computed_in": bench.amp, "dense": dense, "rows": rows}
    write_text(path, json.dumps(whole, indent=1) + "\n")


@app.command
def render() -> None:
    """Write the Markdown page and its picture from all records."""
    from tools.accuracy_page import page
    from tools.accuracy_picture import draw

    records = {path.stem: json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))}
    write_text(RECORDS.with_suffix(".md"), page(records))
    draw(records, RECORDS.with_suffix(".png"))


if __name__ == "__main__":
    app()
