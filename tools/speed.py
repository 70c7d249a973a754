"""What slimming gains on ONNX Runtime's CPU provider, and what each rewrite of `--optimize` does.

    python -m tools.speed --models deit_tiny_patch16_224 deit_small_patch16_224 \
        --output docs/bench/speed

Every row compares two graphs made from one dense export, call by call in one process: see
`slimdeploy.measure.timing` for the protocol. Weights are random. The schedule takes geometric
counts and positions that cover the grid evenly, since time depends on the counts alone. Each
finished row is kept in the JSON file, so a killed run goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import timm
import torch
from cyclopts import App, Parameter

from slimdeploy.console import note
from slimdeploy.counts import counts_for_budget
from slimdeploy.engine.onnxruntime import OnnxRuntimeEngine
from slimdeploy.errors import GraphError
from slimdeploy.files import write_text
from slimdeploy.graph import GraphOptions, dense_graph, lossless_graph, slim_graph
from slimdeploy.graph.optimize import (
    AttentionOp,
    DropKeyBias,
    ErfGelu,
    FoldLayerScale,
    FoldScale,
    FoldValueBias,
    Gemm2D,
    MergedHeads,
)
from slimdeploy.graph.passes import Pass, SplitProjections, Tidy, run
from slimdeploy.graph.slimming import prepared
from slimdeploy.macs import mac_reduction
from slimdeploy.measure.timing import compare_latency
from slimdeploy.positions import keep_by_rank, rank_positions
from slimdeploy.slim.dense_onnx import OnnxOptions, export_dense
from slimdeploy.slim.timm_models import describe

app = App(help="Measure what slimming and each graph rewrite gain on a CPU.")

EXPORTERS = {
    "dynamo 18": OnnxOptions("dynamo", 18),
    "dynamo 18, fused attention": OnnxOptions("dynamo", 18, fused_attention=True),
    "dynamo 20": OnnxOptions("dynamo", 20),
    "dynamo 23": OnnxOptions("dynamo", 23),
    "dynamo 23, fused attention": OnnxOptions("dynamo", 23, fused_attention=True),
    "torchscript 17": OnnxOptions("torchscript", 17),
    "torchscript 17, fused attention": OnnxOptions("torchscript", 17, fused_attention=True),
}
TARGETS = {
    "slim": {"1": 1.75, "8": 2.0},
    "slim, optimised": {"1": 1.72, "8": 1.95},
    "lossless": {"1": 1.06, "8": 1.06},
}
"""Speed-ups at batch 1 and 8 that the project asks for, against the same exporter's dense graph."""
TOLERANCE = 2e-5
"""Largest difference of graphs that compute the same, as a share of the logits' scale."""

Pair = tuple[onnx.ModelProto, onnx.ModelProto]


@dataclass(frozen=True)
class Rewrite:
    """One rewrite to time: what it is applied to has had `before` applied already."""

    exporter: str
    passes: Callable[[], list[Pass]]
    before: Callable[[], list[Pass]] = list
    layer_scale: bool = False


def _separate() -> list[Pass]:
    return [SplitProjections(None, everywhere=True)]


def _folded() -> list[Pass]:
    return [*_separate(), DropKeyBias(), FoldValueBias()]


REWRITES = {
    "ErfGelu": Rewrite("dynamo 18", lambda: [ErfGelu()]),
    "SplitProjections": Rewrite("dynamo 20", _separate),
    "FoldScale": Rewrite("dynamo 20", lambda: [FoldScale()], _separate),
    "FoldScale of two roots": Rewrite(
        "dynamo 18, fused attention", lambda: [FoldScale()], _separate
    ),
    "DropKeyBias, FoldValueBias": Rewrite(
        "dynamo 20", lambda: [DropKeyBias(), FoldValueBias()], _separate
    ),
    "FoldLayerScale": Rewrite("dynamo 20", lambda: [FoldLayerScale()], layer_scale=True),
    "Gemm2D": Rewrite("dynamo 20", lambda: [Gemm2D()], _folded),
    "Gemm2D of the whole stream": Rewrite("dynamo 20", lambda: [Gemm2D(stream=True)], _folded),
    "AttentionOp": Rewrite("dynamo 23", lambda: [AttentionOp()], _separate),
    "AttentionOp, MergedHeads": Rewrite(
        "dynamo 23", lambda: [AttentionOp(), MergedHeads()], _separate
    ),
    "MergedHeads": Rewrite("dynamo 23, fused attention", lambda: [MergedHeads()], _separate),
}


@cache
def build(name: str, layer_scale: bool = False) -> Any:
    """A timm model with every parameter random, so that no two tensors are merged on export."""
    torch.manual_seed(0)
    model = timm.create_model(name, **({"init_values": 0.5} if layer_scale else {})).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            centre = 1.0 if "norm" in key and key.endswith("weight") else 0.0
            spread = 0.02 if parameter.ndim > 1 else 0.1
            parameter.copy_(centre + spread * torch.randn_like(parameter))
    return model


@cache
def export(name: str, exporter: str, layer_scale: bool = False) -> onnx.ModelProto:
    """The model as this exporter writes it."""
    note(f"export {name} by {exporter}")
    return export_dense(build(name, layer_scale), EXPORTERS[exporter])


def schedule(name: str, reduction: float, multiple_of: int) -> tuple[list[list[int]], float]:
    """The tokens that each block keeps, and the share of MACs that saves."""
    geometry = describe(build(name), name)
    counts = counts_for_budget(geometry, reduction, multiple_of=multiple_of)
    keep = keep_by_rank(geometry, rank_positions(geometry, "grid"), counts)
    return [list(ids) for ids in keep], mac_reduction(geometry, counts)


def rewritten(model: onnx.ModelProto, passes: Sequence[Pass]) -> onnx.ModelProto:
    """The graph after these passes alone."""
    work = prepared(model)
    run([*passes, Tidy()], work)
    return work.export()


@dataclass(frozen=True)
class Graphs:
    """What is made of one model by one exporter."""

    name: str
    exporter: str
    keep: Sequence[Sequence[int]]
    layer_scale: bool = False

    def exported(self) -> onnx.ModelProto:
        """The file as the exporter writes it."""
        return export(self.name, self.exporter, self.layer_scale)

    def dense(self, optimize: bool = False) -> onnx.ModelProto:
        """The dense graph in canonical form, perhaps optimised."""
        return dense_graph(self.exported(), GraphOptions(optimize=optimize)).model

    def slim(self, optimize: bool = False) -> onnx.ModelProto:
        """The slim graph, perhaps optimised."""
        return slim_graph(self.exported(), self.keep, GraphOptions(optimize=optimize)).model

    def lossless(self) -> onnx.ModelProto:
        """The graph whose last block computes only what the head reads."""
        return lossless_graph(self.exported()).model

    def with_and_without(self, rewrite: Rewrite, slim: bool) -> Pair:
        """The graph before and after one rewrite."""
        model = self.slim() if slim else self.dense()
        before = rewrite.before()
        return rewritten(model, before), rewritten(model, [*rewrite.before(), *rewrite.passes()])


@dataclass(frozen=True)
class Case:
    """One row: how to make its two graphs, and whether they must compute the same."""

    graphs: Graphs
    comparison: str
    make: Callable[[Graphs], Pair]
    equal: bool

    @property
    def key(self) -> tuple[str, str, str]:
        """What names the row in the file."""
        return self.graphs.name, self.graphs.exporter, self.comparison


COMPARISONS: dict[str, tuple[Callable[[Graphs], Pair], bool]] = {
    "slim": (lambda g: (g.exported(), g.slim()), False),
    "slim, optimised": (lambda g: (g.dense(True), g.slim(True)), False),
    "slim, optimised, against the export": (lambda g: (g.exported(), g.slim(True)), False),
    "lossless": (lambda g: (g.exported(), g.lossless()), True),
    "--optimize on dense": (lambda g: (g.dense(), g.dense(True)), True),
    "--optimize on slim": (lambda g: (g.slim(), g.slim(True)), True),
}


def cases(name: str, keep: Sequence[Sequence[int]]) -> Iterator[Case]:
    """All rows of one model."""
    for exporter in EXPORTERS:
        graphs = Graphs(name, exporter, keep)
        for comparison, (make, equal) in COMPARISONS.items():
            yield Case(graphs, comparison, make, equal)
    for title, rewrite in REWRITES.items():
        graphs = Graphs(name, rewrite.exporter, keep, rewrite.layer_scale)
        for slim in (False, True):
            make = partial(Graphs.with_and_without, rewrite=rewrite, slim=slim)
            yield Case(graphs, f"{title} on {'slim' if slim else 'dense'}", make, True)


def measure(case: Case, batch_sizes: Sequence[int], rounds: int, seconds: float) -> dict[str, Any]:
    """Time one row, after checking that what must be equal is."""
    before, after = case.make(case.graphs)
    engines = [OnnxRuntimeEngine(m.SerializeToString(), "cpu", 1) for m in (before, after)]
    record: dict[str, Any] = dict(zip(("model", "exporter", "comparison"), case.key, strict=True))
    record["nodes"] = [len(before.graph.node), len(after.graph.node)]
    if case.equal:
        record["error"] = difference(*engines)
        if record["error"] > TOLERANCE:
            raise GraphError(f"{case.key}: the graphs differ by {record['error']:.1e}")
    compared = compare_latency(*engines, batch_sizes, rounds=rounds, min_seconds=seconds)
    record["batches"] = {
        str(row.batch_size): {
            "before_ms": row.dense.median_ms,
            "after_ms": row.slim.median_ms,
            "speedup": row.speedup,
            "interval": [row.speedup_interval.low, row.speedup_interval.high],
            "rounds": row.rounds,
        }
        for row in compared.rows
    }
    record["protocol"] = asdict(compared.protocol)
    return record


def difference(one: OnnxRuntimeEngine, two: OnnxRuntimeEngine) -> float:
    """Largest difference of the logits of two random images, as a share of their scale."""
    shape = [size or 2 for size in one.inputs[0].shape]
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    a, b = (next(iter(engine.infer(images).values())) for engine in (one, two))
    return float(np.abs(a - b).max() / np.abs(a).max())


def markdown(record: dict[str, Any]) -> str:
    """The rows as Markdown tables: slim against dense, `--optimize`, each rewrite."""
    rows = record["rows"]
    first = rows[0]["protocol"]
    lines = [
        "# Speed on the CPU",
        "",
        f"{first['cpu']}, ONNX Runtime {first['dense']['version']}, one thread. Median over the "
        "rounds of time before / time after, with its 95 % interval; both are called in turn on "
        "the same input. Random weights. Made by `python -m tools.speed`.",
        "",
        *(f"- `{name}`: {100 * share:.1f} % fewer MACs" for name, share in record["macs"].items()),
        "",
    ]
    sections = {
        "Slim and lossless against dense, of the same exporter; both as exported, both optimised, "
        "or the slim one alone": list(COMPARISONS)[:4],
        "`--optimize`, on dense and on slim": list(COMPARISONS)[4:],
        "Each rewrite alone": [f"{title} on {k}" for title in REWRITES for k in ("dense", "slim")],
    }
    for title, comparisons in sections.items():
        shown = [
            row for comparison in comparisons for row in rows if row["comparison"] == comparison
        ]
        lines += [f"## {title}", "", *_table(shown), ""]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["Not measured."]
    batches = list(rows[0]["batches"])
    columns = ["comparison", "model", "exporter", "nodes", "error"]
    columns += [f"batch {batch}" for batch in batches]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        error = f"{row['error']:.1e}" if "error" in row else ""
        nodes = " to ".join(map(str, row["nodes"]))
        cells = [row["comparison"], row["model"], row["exporter"], nodes, error]
        cells += [_cell(row, batch) for batch in batches]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(row: dict[str, Any], batch: str) -> str:
    found = row["batches"][batch]
    low, high = found["interval"]
    target = TARGETS.get(row["comparison"], {}).get(batch)
    shown = f"{found['speedup']:.3f} ({low:.3f} to {high:.3f})"
    if target is None:
        return shown
    return f"{shown}, {'meets' if found['speedup'] >= target else 'misses'} {target}"


@app.default
def main(
    *,
    models: Annotated[list[str], Parameter(consume_multiple=True)],
    output: Path,
    mac_reduction: float = 0.46,
    multiple_of: int = 1,
    batch_sizes: Annotated[list[int] | None, Parameter(consume_multiple=True)] = None,
    rounds: int = 40,
    min_seconds: float = 10.0,
    only: str = "",
) -> None:
    """Measure every row that OUTPUT.json lacks; OUTPUT.md shows them.

    Args:
        models: timm models.
        output: where the files go, without a suffix.
        mac_reduction: share of the MACs that the schedule saves.
        multiple_of: round token counts to multiples of this.
        batch_sizes: images a call (default: 1 and 8).
        rounds: pairs of calls at least.
        min_seconds: go on for at least this long at each batch size.
        only: measure only rows whose model, exporter and comparison contain this text.
    """
    sizes = batch_sizes or [1, 8]
    settings = {"mac_reduction": mac_reduction, "multiple_of": multiple_of, "batch_sizes": sizes}
    path = output.with_suffix(".json")
    record = _before(path, settings)
    done = {(row["model"], row["exporter"], row["comparison"]) for row in record["rows"]}
    for name in models:
        keep, record["macs"][name] = schedule(name, mac_reduction, multiple_of)
        for case in cases(name, keep):
            if case.key in done or only not in ", ".join(case.key):
                continue
            record["rows"].append(measure(case, sizes, rounds, min_seconds))
            found = record["rows"][-1]["batches"]
            note(f"{', '.join(case.key)}: {[round(b['speedup'], 3) for b in found.values()]}")
            write_text(path, json.dumps(record, indent=1) + "\n")
            write_text(output.with_suffix(".md"), markdown(record))


def _before(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What was measured already with these settings."""
    if path.is_file():
        record: dict[str, Any] = json.loads(path.read_text())
        if record["settings"] == settings:
            return record
    return {"settings": settings, "macs": {}, "rows": []}


if __name__ == "__main__":
    app()
