"""Per-image choice against static positions, and against the peers, at equal MACs.

    python -m tools.dynamic_table --output docs/bench/dynamic

For each budget: the static default, the dynamic form with each scorer, EViT and ToMe; with the
dense model's weights and after the closed-form refit (the peers have none). The ONNX files of the
static and the dynamic forms are timed in pairs. For one budget some methods are fine-tuned briefly,
all alike and from the dense weights. Each finished row is kept in the JSON file, so a killed run
goes on. The test split is looked at here only; nothing is chosen by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, get_args

import numpy as np
import torch
from cyclopts import App, Parameter
from numpy.typing import NDArray

from slimdeploy.cli.common import load_arrays, open_images
from slimdeploy.console import note
from slimdeploy.counts import ShapeChoice
from slimdeploy.dynamic import Dynamic, PerImage, per_image
from slimdeploy.engine.onnxruntime import OnnxRuntimeEngine
from slimdeploy.errors import InputError
from slimdeploy.files import write_text
from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.graph import slim_graph
from slimdeploy.graph.dynamic import ChoicePlan
from slimdeploy.graph.files.storage import save_model
from slimdeploy.images import ImageFolder
from slimdeploy.macs import dense_macs, schedule_macs
from slimdeploy.measure.timing import Clock, compare_latency
from slimdeploy.schedule import KeepSchedule, Layer, ModelGeometry, Provenance
from slimdeploy.slim.dense_onnx import OnnxOptions, export_dense
from slimdeploy.slim.dynamic import DynamicRequest, dynamic_model, slim_of
from slimdeploy.slim.finetune import Finetuner
from slimdeploy.slim.options import FinetuneOptions
from slimdeploy.slim.pipeline import SlimRequest, slim_model
from slimdeploy.slim.timm_models import describe, load_model
from tools.dynamic_page import markdown
from tools.peers import EvitVit, TomeVit, evit_for_budget, peer_macs, tome_for_budget

app = App(help="Compare per-image choice with static positions and with the peers.")

WAYS: tuple[PerImage, ...] = get_args(PerImage)
PEERS = {"evit": (EvitVit, evit_for_budget), "tome": (TomeVit, tome_for_budget)}
ORDER = ("static", "merge", "predictor", *PEERS, "key-norm", "token-norm")
TUNED = ("static", "predictor", "evit", "tome")
RECIPE: dict[str, Any] = {
    "lr": 1e-4, "relative_lr": True, "warmup_epochs": 0.3, "smoothing": 0.05, "min_scale": 0.9,
    "color_jitter": 0.1, "workers": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    model: Any
    geometry: ModelGeometry
    preprocessing: Any
    data: Path
    calibration: torch.Tensor
    test: NDArray[np.float32]
    labels: NDArray[np.int64]
    dense_read: torch.Tensor

    @classmethod
    def of(
        cls, name: str, checkpoint: Path | None, data: Path, images: int, img_size: int | None
    ) -> Bench:
        """The model, its calibration images, and what it makes of the test images."""
        kwargs = {} if img_size is None else {"img_size": img_size}
        model, preprocessing = load_model(name, checkpoint, kwargs)
        test = open_images(data, None, "test")
        arrays = load_arrays(test, preprocessing)
        sample = open_images(data, None, "train").sample(images, seed=0)
        calibration = torch.from_numpy(load_arrays(sample, preprocessing))
        labels, geometry = np.array(test.labels), describe(model, name, kwargs)
        read = read_tokens(model, arrays)
        return cls(model, geometry, preprocessing, data, calibration, arrays, labels, read)

    def right(self, read: torch.Tensor) -> str:
        """Which test images a model gets right, a digit each, from what its head reads."""
        with torch.inference_mode():
            found = self.model.forward_head(read[:, None]).argmax(1).numpy()
        return "".join("1" if hit else "0" for hit in found == self.labels)

    def judge(self, slim: Any) -> dict[str, Any]:
        """Hits on the test images, and the mean cosine of what the head reads to the dense."""
        read = read_tokens(slim.eval(), self.test)
        cosine = torch.nn.functional.cosine_similarity(read, self.dense_read).mean()
        return {"right": self.right(read), "cosine": float(cosine)}

    def schedule(self, layers: list[Layer], dynamic: Dynamic | None = None) -> KeepSchedule:
        """A schedule for the bench's model."""
        return KeepSchedule(
            model=self.geometry,
            preprocessing=self.preprocessing,
            layers=tuple(layers),
            dynamic=dynamic,
            provenance=Provenance(slimdeploy="table"),
        )


@torch.inference_mode()
def read_tokens(model: Any, images: NDArray[np.float32]) -> torch.Tensor:
    """The class token that the head reads, [n, D], of images [n, C, H, W]."""
    parts = torch.from_numpy(images).split(32)
    return torch.cat([model.forward_features(part)[:, 0] for part in parts])


@dataclass(frozen=True)
class Method:
    """One way of having fewer tokens: how to make its model, and what that costs.

    Attributes:
        make: the slim model from a dense one.
        refitted: the dense model with refitted weights, if there is one.
        schedule: None for a peer.
        shape: of its counts, where it has several to choose from.
    """

    name: str
    make: Callable[[Any], Any]
    macs: int
    refitted: Any = None
    schedule: KeepSchedule | None = None
    shape: str | None = None


def scheduled(name: str, schedule: KeepSchedule, refitted: Any, shape: str | None) -> Method:
    """A method of slimdeploy's own."""
    macs = schedule_macs(schedule).total
    return Method(name, lambda dense: slim_of(dense, schedule), macs, refitted, schedule, shape)


def make_method(
    bench: Bench, name: str, reduction: float, shape: ShapeChoice = "auto", refit: bool = True
) -> Method:
    """Search, or fit, what a method needs for a budget; refitted weights only with `refit`."""
    if name in PEERS:
        peer, budget = PEERS[name]
        counts = budget(bench.geometry, reduction)
        return Method(name, lambda dense: peer(dense, counts), peer_macs(bench.geometry, counts))
    if name == "static":
        request = SlimRequest(mac_reduction=reduction, shape=shape)
        found = slim_model(bench.model, bench.geometry, bench.calibration, request)
        return scheduled(name, bench.schedule(found.layers), found.model, found.shape)
    options = RidgeOptions() if refit else None
    way = per_image(name)
    if way is None:
        raise InputError(f"--methods {name}: not one of {', '.join(ORDER)}")
    wanted = DynamicRequest(way, reduction, shape, refit=options)
    made = dynamic_model(bench.model, bench.geometry, bench.calibration, wanted)
    return scheduled(name, bench.schedule(made.layers, made.dynamic), made.model, made.shape)


def tune(bench: Bench, method: Method, epochs: float, images: int) -> Any:
    """The method's slim model after the common fine-tuning, from the dense weights."""
    data = ImageFolder.open(bench.data, "train")
    tuner = Finetuner(
        bench.model,
        bench.model,
        method.schedule or bench.schedule([Layer(keep=(0,))] * bench.geometry.depth),
        data.sample(min(images, len(data)), seed=0),
        bench.preprocessing,
        FinetuneOptions(epochs=epochs, **RECIPE),
        make_slim=lambda dense, schedule: method.make(dense),
    )
    return method.make(tuner.run())


def accuracy_rows(bench: Bench, name: str, reduction: float) -> Iterator[dict[str, Any]]:
    """One method at one budget, judged at each stage that needs no training."""
    method = make_method(bench, name, reduction)
    row = {"reduction": reduction, "method": name, "shape": method.shape, "macs": method.macs}
    yield {**row, "stage": "dense weights", **bench.judge(method.make(bench.model))}
    if method.refitted is not None:
        yield {**row, "stage": "refit", **bench.judge(method.make(method.refitted))}


def tuned_row(
    bench: Bench, name: str, reduction: float, shape: ShapeChoice, epochs: float, images: int
) -> dict[str, Any]:
    """One method at one budget, judged after fine-tuning."""
    method = make_method(bench, name, reduction, shape, refit=False)
    row = {"reduction": reduction, "method": name, "macs": method.macs, "stage": "finetuned"}
    recipe = {"epochs": epochs, "images": images, **RECIPE}
    return {**row, "recipe": recipe, **bench.judge(tune(bench, method, epochs, images))}


def speed_rows(
    bench: Bench, reduction: float, rounds: int, clock: Clock
) -> Iterator[dict[str, Any]]:
    """Each file of a budget in pairs with the dense one, and each dynamic one with the static."""
    dense = export_dense(bench.model, OnnxOptions("dynamo", 20))
    with TemporaryDirectory() as folder:
        paths = {"dense": Path(folder) / "dense.onnx"}
        save_model(dense, paths["dense"])
        for name in ("static", *WAYS):
            schedule = _timed_schedule(bench, name, reduction)
            plan = ChoicePlan.of(schedule)
            paths[name] = Path(folder) / f"{name}.onnx"
            save_model(slim_graph(dense, schedule.keep, plan=plan).model, paths[name])
        pairs = [("dense", name) for name in ("static", *WAYS)]
        for base, name in [*pairs, *(("static", way) for way in WAYS)]:
            note(f"timing {name} against {base}")
            with (
                OnnxRuntimeEngine(paths[base], threads=1) as one,
                OnnxRuntimeEngine(paths[name], threads=1) as two,
            ):
                images = bench.test[:8]
                timed = compare_latency(one, two, [1, 8], rounds=rounds, images=images, clock=clock)
            yield {"reduction": reduction, "method": name, "against": base, **timed.to_json()}


def _timed_schedule(bench: Bench, name: str, reduction: float) -> KeepSchedule:
    """Time depends on counts alone: nothing is searched, and predictors hold ones."""
    way = per_image(name)
    request = DynamicRequest("merge" if way == "merge" else "token-norm", reduction, "geometric")
    few = bench.calibration[:2]
    made = dynamic_model(bench.model, bench.geometry, few, replace(request, refit=None))
    if way is None:
        return bench.schedule(made.layers)
    if way != "predictor":
        return bench.schedule(made.layers, Dynamic(scorer=way))
    chooses = ChoicePlan.of(bench.schedule(made.layers, made.dynamic))
    assert chooses is not None
    ones = (1.0,) * bench.geometry.width
    weights = tuple(ones if chosen else None for chosen in chooses.chooses)
    return bench.schedule(made.layers, Dynamic(scorer="predictor", weights=weights))


@app.default
def main(
    *,
    output: Path,
    model: str = "vit_tiny_patch16_224",
    checkpoint: Path | None = Path("models/elpv_vit_tiny/model.safetensors"),
    data_dir: Path = Path("build/elpv"),
    img_size: int | None = None,
    reductions: Annotated[list[float] | None, Parameter(consume_multiple=True)] = None,
    methods: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    images: int = 192,
    finetune_at: float = 0.46,
    epochs: float = 1,
    train_images: int = 640,
    rounds: int = 40,
    clock: Clock = "wall",
    accuracy: bool = True,
    speed: bool = True,
) -> None:
    """Make the table: OUTPUT.json holds the rows, OUTPUT.md shows them.

    Args:
        img_size: the model's input size in pixels, if not its own.
        methods: which to judge (default: all); rows that are there already stay.
        finetune_at: the budget at which some are fine-tuned; --epochs 0 for none.
        rounds: pairs of timed calls at each batch size.
        clock: what they are timed by; cpu on a machine that others use too.
        accuracy: judge; --no-accuracy leaves those rows as they are.
        speed: time; --no-speed likewise.
    """
    bench = Bench.of(model, checkpoint, data_dir, images, img_size)
    path, budgets = output.with_suffix(".json"), reductions or [0.46, 0.54, 0.60]
    settings = {
        "model": model,
        "data": data_dir.name,
        "images": images,
        "test_images": len(bench.labels),
        "dense_macs": dense_macs(bench.geometry).total,
        "dense_right": bench.right(bench.dense_read),
    }
    record = _finished(path, settings)

    def keep(kind: str, row: dict[str, Any]) -> None:
        record[kind].append(row)
        write_text(path, json.dumps(record, indent=1) + "\n")
        write_text(output.with_suffix(".md"), markdown(record))

    for reduction in budgets:
        for name in (methods or ORDER) if accuracy else ():
            if not _has(record["accuracy"], reduction, name):
                note(f"{name} at {reduction:.0%}")
                for row in list(accuracy_rows(bench, name, reduction)):
                    keep("accuracy", row)
        if speed and not _has(record["speed"], reduction, WAYS[-1]):
            for row in list(speed_rows(bench, reduction, rounds, clock)):
                keep("speed", row)
    for name in TUNED if epochs else ():
        if not _has([r for r in record["accuracy"] if "recipe" in r], finetune_at, name):
            note(f"fine-tuning {name}")
            shape = _shape_of(record["accuracy"], finetune_at, name)
            keep("accuracy", tuned_row(bench, name, finetune_at, shape, epochs, train_images))
    write_text(output.with_suffix(".md"), markdown(record))


def _has(rows: list[dict[str, Any]], reduction: float, name: str) -> bool:
    return any((row["reduction"], row["method"]) == (reduction, name) for row in rows)


def _shape_of(rows: list[dict[str, Any]], reduction: float, name: str) -> ShapeChoice:
    """The shape that a method took before, so that it is not sought again."""
    found = (row["shape"] for row in rows if _has([row], reduction, name))
    return next(found, None) or "auto"


def _finished(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run of the same settings left, or an empty record."""
    if path.is_file():
        before: dict[str, Any] = json.loads(path.read_text())
        if before["settings"] == settings:
            return before
    return {"settings": settings, "accuracy": [], "speed": []}


if __name__ == "__main__":
    app()
