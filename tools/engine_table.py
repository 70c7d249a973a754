"""What TensorRT-RTX makes of whole models, on a machine with no GPU: builds, and their kernels.

    python -m tools.engine_table --output docs/bench/engines

Every engine is built by `slimdeploy.engine.building`, as `slimdeploy build` does. Weights are
random, and what int8 and fp8 are clipped at is arbitrary: which kernels the compiler makes depends
on neither. Every product with weights in the blocks is quantised, however few its rows. Nothing is
run, so no row says how fast an engine is. Each finished row is kept in the JSON file, so a killed
run goes on where it was.
"""

from __future__ import annotations

import json
import platform
import tempfile
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
from cyclopts import App

from slimdeploy.cli import main as slimdeploy
from slimdeploy.console import note
from slimdeploy.counts import counts_for_budget, counts_for_merging
from slimdeploy.dynamic import Dynamic, choosing_layers
from slimdeploy.engine.building import (
    BuildRequest,
    Caches,
    batch_profile,
    build_engine,
    model_inputs,
)
from slimdeploy.engine.host import installed
from slimdeploy.files import write_text
from slimdeploy.graph import GraphOptions, lossless_graph, slim_graph
from slimdeploy.graph.dynamic import ChoicePlan
from slimdeploy.macs import dense_macs, model_macs
from slimdeploy.positions import keep_by_rank, rank_positions
from slimdeploy.slim.dense_onnx import OnnxOptions, export_dense
from slimdeploy.slim.timm_models import describe

app = App(help="Build whole models with TensorRT-RTX and look at their kernels.")

MODELS = {
    "DeiT-Ti": ("deit_tiny_patch16_224", 224),
    "DINOv2-S": ("vit_small_patch14_dinov2", 224),
    "CLIP-B": ("vit_base_patch16_clip_224", 224),
}
"""timm's names, and the image size in pixels; of CLIP the image tower."""

REDUCTION = 0.46
FORMS = ("gather", "slice", "slice-concat", "one-hot")
PER_IMAGE = "per-image"
"""Each image's own tokens, by a predictor with random weights."""
MERGE = "merge"
"""Each image's own means of alike patches."""

VARIANTS = (
    *((form, "fp16", True) for form in ("dense", "lossless", *FORMS)),
    *((form, "fp16", True) for form in (PER_IMAGE, MERGE)),
    ("gather", "fp16", False),
    *((form, p, True) for p in ("fp32", "bf16", "int8", "fp8") for form in ("dense", "gather")),
)
"""Form, precision, and whether the batch size is left open."""


@dataclass(frozen=True)
class Row:
    """One engine; seconds are of this machine, shared with others."""

    model: str
    form: str
    precision: str
    dynamic: bool
    target: str
    mac_reduction: float
    parse_seconds: float
    build_seconds: float
    megabytes: float
    kernels: int
    blocks: int
    fused_attentions: int
    selections_alone: int
    data_movement: int
    tokens_per_block: list[int]
    tokens_as_planned: bool

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """What is built."""
        return self.model, self.form, self.precision, self.dynamic


@cache
def _model(name: str) -> Any:
    torch.manual_seed(0)
    timm_name, size = MODELS[name]
    model = timm.create_model(timm_name, img_size=size).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # equal ones would be merged by the exporter
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@cache
def _dense(name: str, dynamic: bool) -> onnx.ModelProto:
    note(f"export {name}")
    return export_dense(_model(name), OnnxOptions(opset=20, dynamic_batch=dynamic))


@cache
def _keep(name: str, merged: bool = False) -> tuple[list[list[int]], float]:
    """The tokens that each block keeps, and the share of MACs that saves."""
    geometry = describe(_model(name), name)
    rule = counts_for_merging if merged else counts_for_budget
    counts = rule(geometry, REDUCTION, "geometric")
    keep = keep_by_rank(geometry, rank_positions(geometry, "grid"), counts)
    spent = model_macs(geometry, counts, dynamic="merge" if merged else None).total
    return [list(ids) for ids in keep], 1 - spent / dense_macs(geometry).total


def _plan(name: str, form: str) -> ChoicePlan:
    merged = form == MERGE
    geometry, counts = describe(_model(name), name), [len(x) for x in _keep(name, merged)[0]]
    prefix, draw = len(geometry.prefix), np.random.default_rng(0)
    chooses = choosing_layers(counts, geometry.tokens, prefix)
    rows = [tuple(draw.standard_normal(geometry.width).tolist()) if c else None for c in chooses]
    scorer = Dynamic(scorer="predictor", weights=tuple(rows))
    decided = Dynamic(scorer="merge") if merged else scorer
    return ChoicePlan(decided, tuple(counts), geometry.tokens, prefix, geometry.head_reads)


def graph(name: str, form: str, precision: str, dynamic: bool) -> onnx.ModelProto:
    """One variant of a model."""
    model = _dense(name, dynamic)
    if form == "lossless":
        model = lossless_graph(model).model
    elif form in (PER_IMAGE, MERGE):
        plan = _plan(name, form)
        model = slim_graph(model, plan.places, plan=plan).model
    elif form != "dense":
        options = GraphOptions(select=form)  # type: ignore[arg-type]
        model = slim_graph(model, _keep(name)[0], options).model
    return model if precision == "fp32" else _quantized(model, precision)


def _quantized(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """As `slimdeploy quantize` writes it, calibrated on noise."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = [dim.dim_value for dim in dims[1:]]
    images = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        source, target, noise = (Path(folder) / n for n in ("a.onnx", "b.onnx", "c.npz"))
        onnx.save(model, source)
        np.savez(noise, images=images)
        options = ["--precision", precision, "--output", str(target)]
        if precision in ("int8", "fp8"):
            options += ["--least-rows", "1", "--smooth", "0"]
        slimdeploy(["quantize", str(source), "--calibration", str(noise), *options])
        return onnx.load(target)


def _planned(name: str, form: str, tokens: list[int]) -> list[int]:
    """The tokens that each block must compute."""
    if form == "dense":
        return tokens[:1] * len(tokens)
    if form == "lossless":
        return [*tokens[:1] * (len(tokens) - 1), tokens[-1]]
    return [len(ids) for ids in _keep(name, form == MERGE)[0]]


def measured(name: str, form: str, precision: str, dynamic: bool) -> Row:
    """Build one variant and read it back."""
    note(f"build {name} {form} {precision}{'' if dynamic else ' static'}")
    with tempfile.TemporaryDirectory() as folder:
        path, plan = Path(folder) / "m.onnx", Path(folder) / "m.plan"
        onnx.save(graph(name, form, precision, dynamic), path)
        batch = batch_profile(str(path), model_inputs(path), (None, None, None))
        target = "8.9" if precision == "fp8" else "8.6"
        request = BuildRequest("tensorrt-rtx", batch=batch, compute_capabilities=(target,))
        record = build_engine(path, request, plan, caches=Caches(engines=False)).record
        tokens = [block.queries for block in record.blocks]
        return Row(
            name,
            form,
            precision,
            dynamic,
            target,
            0.0 if form in ("dense", "lossless") else round(_keep(name, form == MERGE)[1], 3),
            record.parse_seconds,
            record.build_seconds,
            round(plan.stat().st_size / 1e6, 1),
            record.kernels["kernels"],
            record.kernels["blocks"],
            record.kernels["fused_attentions"],
            record.kernels["selections_alone"],
            record.kernels["data_movement"],
            tokens,
            tokens == _planned(name, form, tokens) and record.blocks_read_from == "engine",
        )


_HEAD = (
    "model",
    "form",
    "precision",
    "batch",
    "parse s",
    "build s",
    "MB",
    "kernels",
    "fused attentions",
    "lone selections",
    "kernels that only move data",
    "tokens",
)


def markdown(record: dict[str, Any]) -> str:
    """The table, and what it means."""
    lines = [
        "# Engines that TensorRT-RTX builds",
        "",
        f"TensorRT-RTX {record['tensorrt_rtx']} on {record['cores']}, no GPU: compiled ahead of "
        "time for compute capability 8.6 (fp8: 8.9). **No engine was run**, so no row says how "
        "fast one is; seconds are of a machine shared with other work and are no comparison. "
        f"Slim models drop {100 * record['reduction']:.0f} % of the MACs. Weights are random. Made "
        "by `python -m tools.engine_table`.",
        "",
        "Kernels are those of the engine's own table. *Fused attentions*: blocks whose attention "
        "is one kernel. *Lone selections*: kernels that only select tokens; a selection that is "
        "fused is a part of a kernel that computes something, as a LayerNorm's or an addition's. "
        "*Tokens*: what the kernels of each block work on is what the schedule says.",
        "",
        _selections(record["rows"]),
        "",
        f"| {' | '.join(_HEAD)} |",
        "|---" * len(_HEAD) + "|",
    ]
    return "\n".join([*lines, *(_line(row) for row in record["rows"])]) + "\n"


def _selections(rows: list[dict[str, Any]]) -> str:
    """Whether each selection is fused into a kernel that computes something."""
    slim = [row for row in rows if row["form"] in FORMS and row["form"] != "one-hot"]
    missed = [row for row in slim if row["selections_alone"]]
    most = max((row["selections_alone"] for row in slim), default=0)
    if not missed:
        return "Each selection by gather, slice or slice-concat is fused into another kernel."
    kernels = "a kernel" if most == 1 else f"up to {most} kernels"
    return (
        f"Not every selection is fused: {len(missed)} of the {len(slim)} engines that drop tokens "
        f"by gather, slice or slice-concat have {kernels} that only selects: all in "
        f"{_shown(missed)}; {_shown([r for r in slim if r not in missed]) or 'none'} go without. "
        "Which block it belongs to is not recorded. One-hot selections are products, and stay "
        "kernels of their own. Where each image decides (per-image: chosen by a predictor; merge: "
        "the most similar averaged), the kernels that score, sort and average come on top."
    )


def _shown(rows: list[dict[str, Any]]) -> str:
    """Precisions and batches of some rows, as "fp16 (batch 1 to 8)"."""
    kinds = dict.fromkeys((row["precision"], _batch(row)) for row in rows)
    return ", ".join(f"{precision} (batch {batch})" for precision, batch in kinds)


def _batch(row: dict[str, Any]) -> str:
    return "1 to 8" if row["dynamic"] else "1"


def _line(row: dict[str, Any]) -> str:
    cells = [
        row["model"],
        row["form"],
        row["precision"],
        _batch(row),
        f"{row['parse_seconds']:.2f}",
        f"{row['build_seconds']:.1f}",
        f"{row['megabytes']:.1f}",
        str(row["kernels"]),
        f"{row['fused_attentions']} of {row['blocks']}",
        str(row["selections_alone"]),
        str(row["data_movement"]),
        "as planned" if row["tokens_as_planned"] else "DIFFER",
    ]
    return f"| {' | '.join(cells)} |"


@app.default
def main(*, output: Path = Path("docs/bench/engines"), models: tuple[str, ...] = ()) -> None:
    """Build every variant of every model.

    Args:
        output: the table's path without a suffix.
        models: of those in `MODELS` (default: all).
    """
    path = output.with_suffix(".json")
    kept = json.loads(path.read_text())["rows"] if path.is_file() else []
    rows = {Row(**row).key: Row(**row) for row in kept}
    wanted = [(name, *variant) for name in models or MODELS for variant in VARIANTS]
    for key in wanted:
        if key not in rows:
            rows[key] = measured(*key)
        order = [(name, *variant) for name in MODELS for variant in VARIANTS]
        record = {
            "tensorrt_rtx": installed("tensorrt-rtx"),
            "cores": f"2 cores of {platform.machine()}",
            "reduction": REDUCTION,
            "rows": [asdict(rows[key]) for key in order if key in rows],
        }
        write_text(path, json.dumps(record, indent=1) + "\n")
        write_text(output.with_suffix(".md"), markdown(record))


if __name__ == "__main__":
    app()
