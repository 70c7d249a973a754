"""Time and memory of the graph stage on large models: `python -m tools.scale --output DIR`.

Each model has random weights and is exported by torch once, into build/scale. Two things are then
measured, each in a process of its own, whose peak of resident memory the system gives:

    graph stage     load the file, `slim_graph`, `save_model`
    whole command   `slimdeploy export --onnx ... --keep-schedule ...`, which also runs dense and
                    slim on four images and compares them

A finished model is kept in DIR/scale.json, so a killed run goes on where it was; DIR/scale.md is
the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from slimdeploy.console import note
from slimdeploy.files import write_text
from slimdeploy.measure.host import cpu_name

app = App(help="Measure the graph stage on large models.")

BUILD = Path("build/scale")
MODELS = {
    "vit_base_patch16_224": "ViT-B/16 at 224",
    "vit_large_patch14_clip_336": "ViT-L/14 at 336",
    "vit_huge_patch14_224": "ViT-H/14 at 224",
}
REDUCTION = 0.46


@dataclass(frozen=True)
class Cost:
    """What one process took: seconds by the clock and of the CPU, and its peak memory in bytes."""

    wall: float
    cpu: float
    peak: int


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        bytes: the dense model's files together.
        outside: whether its weights lie beside it, for they exceed 2 GB.
        blocks: tokens per block of the slim graph, as read back from it.
        stage: the graph stage alone; `slim_graph` is the part of it that neither loads nor saves.
        command: the whole command, with the comparison of outputs.
        parity: largest difference found by it, as a share of the outputs' scale.
        load: processes that wanted a core in the minute before; with more than there are cores,
            seconds by the clock say little.
    """

    model: str
    bytes: int
    outside: bool
    blocks: list[int]
    slim_graph: float
    stage: Cost
    command: Cost
    parity: float
    load: float


@app.default
def measure(
    *,
    models: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    output: Path = Path("docs/bench/scale"),
) -> None:
    """Measure each model and write the table.

    Args:
        models: timm names (default: ViT-B/16, ViT-L/14 at 336, ViT-H/14).
        output: folder of scale.json and scale.md.
    """
    record = output / "scale.json"
    rows = json.loads(record.read_text())["rows"] if record.is_file() else {}
    for name in models or MODELS:
        if name in rows:
            note(f"{name}: measured before")
            continue
        note(f"{name}: measuring")
        rows[name] = asdict(_row(name))
        found = {"cpu": cpu_name(), "cores": os.cpu_count(), "reduction": REDUCTION, "rows": rows}
        write_text(record, json.dumps(found, indent=2) + "\n")
        write_text(output / "scale.md", table(found))


def _row(name: str) -> Row:
    dense, schedule = BUILD / f"{name}.onnx", BUILD / f"{name}.json"
    if not dense.is_file():
        _run(sys.executable, "-m", "tools.scale", "build", name, str(dense))
    program, load = [sys.executable, "-m", "slimdeploy"], os.getloadavg()[0]
    plan = ["plan", "--onnx", str(dense), "--mac-reduction", str(REDUCTION)]
    _run(*program, *plan, "--output", str(schedule))
    slim = BUILD / f"{name}.slim.onnx"
    stage, said = _run(sys.executable, "-m", "tools.scale", "stage", *map(str, (dense, schedule)))
    chosen = ["--onnx", str(dense), "--keep-schedule", str(schedule)]
    command, result = _run(*program, "export", *chosen, "--output", str(slim), "--json")
    beside = dense.with_name(dense.name + ".data")
    sizes = [path.stat().st_size for path in (dense, beside) if path.is_file()]
    return Row(
        model=MODELS.get(name, name),
        bytes=sum(sizes),
        outside=len(sizes) > 1,
        blocks=result["tokens_per_block"],
        slim_graph=said["slim_graph"],
        stage=stage,
        command=command,
        parity=result["parity"]["relative"],
        load=load,
    )


def _run(*words: str) -> tuple[Cost, dict[str, Any]]:
    """Run a program; what it cost, and the record on its standard output, if any."""
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    wall, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    record = json.loads(said) if said.startswith("{") else {}
    return Cost(wall, cpu, usage.ru_maxrss * 1024), record


@app.command
def stage(dense: Path, schedule: Path) -> None:
    """The graph stage on one file, in this process: load, slim, save."""
    from slimdeploy.graph import slim_graph
    from slimdeploy.graph.files.storage import load_model, save_model
    from slimdeploy.schedule import KeepSchedule

    keep = KeepSchedule.read(schedule).keep
    model = load_model(dense)
    start = time.perf_counter()
    made = slim_graph(model, keep)
    seconds = time.perf_counter() - start
    save_model(made.model, dense.with_suffix(".stage.onnx"))
    print(json.dumps({"slim_graph": seconds}))


@app.command
def build(name: str, output: Path) -> None:
    """Export one timm model with random weights; those of more than 2 GB lie beside the file."""
    import timm
    import torch

    from slimdeploy.graph.files.storage import MESSAGE_LIMIT

    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
            parameter.copy_(centre + 0.02 * torch.randn_like(parameter))
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    images = torch.zeros(2, 3, *model.patch_embed.img_size)
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model,
        (images,),
        output,
        dynamo=True,
        verbose=False,
        opset_version=20,
        input_names=["images"],
        output_names=["logits"],
        external_data=size > MESSAGE_LIMIT,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )


def table(found: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    lines = [
        f"Graph stage on large models, {found['reduction']:.0%} fewer MACs, {found['cpu']}, "
        f"{found['cores']} cores. Peak memory is of the whole process; ratio: to the dense model's "
        "size. Made by `python -m tools.scale`.",
        "",
        "| model | size GB | weights | `slim_graph` s | load, slim, save s (CPU s) | peak GB "
        "| ratio | whole command s (CPU s) | peak GB | ratio | parity | load before |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"].values():
        costs = [_cost(row[kind], row["bytes"]) for kind in ("stage", "command")]
        place = "beside" if row["outside"] else "inside"
        lines.append(
            f"| {row['model']} | {row['bytes'] / 1e9:.2f} | {place} | {row['slim_graph']:.1f} | "
            f"{costs[0]} | {costs[1]} | {row['parity']:.0e} | {row['load']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _cost(cost: dict[str, Any], size: int) -> str:
    peak = cost["peak"]
    return f"{cost['wall']:.1f} ({cost['cpu']:.1f}) | {peak / 1e9:.2f} | {peak / size:.2f}"


if __name__ == "__main__":
    app()
