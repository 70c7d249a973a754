"""`make demo`: a real ViT on real photographs, slimmed by about half, beside its dense self.

Every step is a `slimdeploy` command that a user could type; this script runs them in order, prints
each, and gathers their results into one table and `build/demo/summary.json`.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

from cyclopts import App
from rich.console import Console
from rich.table import Table

from slimdeploy import cli
from slimdeploy.cli.common import weights_file
from slimdeploy.console import note
from slimdeploy.files import write_text
from slimdeploy.macs import dense_macs, schedule_macs
from slimdeploy.report.lifetimes import draw_lifetimes
from slimdeploy.schedule import KeepSchedule

MODEL = Path("models/elpv_vit_tiny")
DATA = Path("build/elpv")
OUT = Path("build/demo")
NAME = "vit_tiny_patch16_224"
PICTURED = 3
"""Seed of the photographs that are drawn."""

# The model's weights differ in scale by two orders of magnitude (it was cut from a larger one), so
# steps are relative. Chosen on the validation split.
FINETUNE = (
    "--epochs", 3, "--relative-lr", "--lr", 4e-4, "--warmup-epochs", 0.3, "--smoothing", 0.05,
    "--vflip", 0.5, "--min-scale", 0.9, "--color-jitter", 0.1,
)  # fmt: skip


def run(*arguments: object) -> dict[str, Any]:
    """Run one `slimdeploy` command, shown as it would be typed, and give back its JSON."""
    words = [str(argument) for argument in arguments]
    note(f"\n$ slimdeploy {shlex.join(words)}")
    output, start = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(output):
        cli.main([*words, "--json"])
    note(f"  {time.perf_counter() - start:.0f} s")
    return dict(json.loads(output.getvalue()))


def finetune_command() -> list[object]:
    """What made the fine-tuned weights that are shipped."""
    return [
        "finetune", "--keep-schedule", OUT / "search.json", "--data-dir", DATA, *FINETUNE,
        "--save-dtype", "float16", "--output", OUT / "slim.safetensors",
        "--output-schedule", OUT / "sched.json",
    ]  # fmt: skip


def ship_or_finetune(live: bool) -> None:
    """The fine-tuned slim weights and their schedule in OUT: trained now, or the shipped ones."""
    if live:
        run(*finetune_command())
        return
    shipped, found = KeepSchedule.read(MODEL / "sched.json"), KeepSchedule.read(OUT / "search.json")
    words = shlex.join(str(word) for word in finetune_command())
    note(
        "\nFine-tuning takes about six minutes on two cores, so the demo takes the weights shipped "
        f"in {MODEL}.\nThis made them (`python -m tools.demo --finetune` does it here):"
        f"\n  slimdeploy {words}"
    )
    if shipped.digest != found.digest:
        note(
            "This machine's arithmetic led the search to other patches; the shipped weights keep "
            "their own schedule."
        )
    shutil.copyfile(MODEL / "slim.safetensors", OUT / "slim.safetensors")
    named = {
        "checkpoint": weights_file(MODEL / "model.safetensors", OUT / "sched.json"),
        "slim_checkpoint": weights_file(OUT / "slim.safetensors", OUT / "sched.json"),
    }
    shipped.model_copy(update=named).write(OUT / "sched.json")


def slim_and_export(live: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Search, recover, export both models and prove the slim one; the schedule's and its proof."""
    sched, data = OUT / "sched.json", ["--data-dir", DATA]
    dense_weights = ["--checkpoint", MODEL / "model.safetensors"]
    run(
        "slim", "--model", NAME, *dense_weights, *data, "--mac-reduction", 0.46, "--shape", "auto",
        "--output", OUT / "search.json",
    )  # fmt: skip
    ship_or_finetune(live)
    found = run("inspect", sched)
    run("export", "--keep-schedule", sched, "--output", OUT / "slim.onnx")
    run("export", "--model", NAME, *dense_weights, "--output", OUT / "dense.onnx")
    proof = run("verify", "--slim", OUT / "slim.onnx", "--keep-schedule", sched, *data)
    return found, proof


def compare() -> tuple[dict[str, Any], dict[str, Any]]:
    """Accuracy and latency of both."""
    dense, slim = OUT / "dense.onnx", OUT / "slim.onnx"
    accuracy = run("evaluate", slim, "--dense", dense, "--data-dir", DATA)
    latency = run(
        "profile", "--dense", dense, "--slim", slim, "--batch-size", "1,8", "--rounds", 80,
    )  # fmt: skip
    return accuracy, latency


def by_image() -> dict[str, Any]:
    """The same budget, each image's most similar patches merged; of the dense file, untrained."""
    slim, sched = OUT / "dynamic.onnx", OUT / "dynamic.json"
    run(
        "slim", "--onnx", OUT / "dense.onnx", "--data-dir", DATA, "--mac-reduction", 0.46,
        "--dynamic", "merge", "--output", slim,
    )  # fmt: skip
    run(
        "draw", sched, "--slim", slim, "--data-dir", DATA, "--seed", PICTURED,
        "--output", OUT / "kept_by_image.png",
    )  # fmt: skip
    return run("evaluate", slim, "--dense", OUT / "dense.onnx", "--data-dir", DATA)


def pictures() -> None:
    """The schedule as a picture, and what survives of four test photographs."""
    schedule = KeepSchedule.read(OUT / "sched.json")
    grid, prefix = schedule.model.grid, len(schedule.model.prefix)
    slim, dense = schedule_macs(schedule), dense_macs(schedule.model)
    draw_lifetimes(schedule.keep, grid, prefix, slim, dense, OUT / "lifetimes.png")
    run(
        "draw", OUT / "sched.json", "--data-dir", DATA, "--seed", PICTURED,
        "--output", OUT / "kept_patches.png",
    )  # fmt: skip


def summary(
    found: dict[str, Any],
    proof: dict[str, Any],
    accuracy: dict[str, Any],
    latency: dict[str, Any],
    dynamic: dict[str, Any],
) -> dict[str, Any]:
    """What `summary.json` holds."""
    return {
        "dense": {"top1": accuracy["dense"]["top1"], "macs": found["dense_macs"]},
        "slim": {"top1": accuracy["slim"]["top1"], "macs": found["slim_macs"]},
        "mac_reduction": found["mac_reduction"],
        "images": accuracy["slim"]["n"],
        "accuracy_comparison": accuracy["comparison"],
        "by_image": {"top1": dynamic["slim"]["top1"], "comparison": dynamic["comparison"]},
        "speedup": {
            str(row["batch_size"]): {
                "ratio": row["speedup"],
                "low": row["speedup_interval"]["low"],
                "high": row["speedup_interval"]["high"],
                "dense_ms": row["dense"]["median_ms"],
                "slim_ms": row["slim"]["median_ms"],
            }
            for row in latency["rows"]
        },
        "protocol": latency["protocol"],
        "parity": proof["parity"],
        "artifacts": {
            "search": str(OUT / "search.json"),
            "schedule": str(OUT / "sched.json"),
            "slim_checkpoint": str(OUT / "slim.safetensors"),
            "dense_onnx": str(OUT / "dense.onnx"),
            "slim_onnx": str(OUT / "slim.onnx"),
            "lifetimes": str(OUT / "lifetimes.png"),
            "kept_patches": str(OUT / "kept_patches.png"),
            "kept_by_image": str(OUT / "kept_by_image.png"),
            "dynamic_onnx": str(OUT / "dynamic.onnx"),
        },
    }


def cells(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The demo's table: what, dense, slim, difference."""
    dense, slim = result["dense"], result["slim"]
    compared = result["accuracy_comparison"]
    interval = compared["difference_interval"]
    rows = [
        (
            f"top-1 on {result['images']} test images",
            f"{dense['top1']:.2%}",
            f"{slim['top1']:.2%}",
            f"{100 * compared['difference']:+.2f} points "
            f"({100 * interval['low']:+.1f} to {100 * interval['high']:+.1f})",
        ),
        (
            "GMAC an image",
            f"{dense['macs'] / 1e9:.3f}",
            f"{slim['macs'] / 1e9:.3f}",
            f"-{result['mac_reduction']:.1%}",
        ),
    ]
    for size, timed in result["speedup"].items():
        ratio = f"{timed['ratio']:.2f}x ({timed['low']:.2f} to {timed['high']:.2f})"
        dense_ms, slim_ms = f"{timed['dense_ms']:.1f}", f"{timed['slim_ms']:.1f}"
        rows.append((f"ms, batch {size}, one thread", dense_ms, slim_ms, f"{ratio} faster"))
    return rows


def table(result: dict[str, Any]) -> Table:
    """The demo's table for a terminal."""
    rows = Table(title="ViT-Ti on photographs of solar cells", title_justify="left")
    for name in ("", "dense", "slim", "difference (95 %)"):
        rows.add_column(name, justify="left" if not name else "right")
    for line in cells(result):
        rows.add_row(*line)
    return rows


def markdown(result: dict[str, Any]) -> str:
    """The demo's table for the README."""
    lines = ["| | dense | slim | difference (95 %) |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(line) + " |" for line in cells(result)]
    return "\n".join(lines) + "\n"


def main(*, finetune: bool = False) -> None:
    """Run the demo from the repository's root.

    Args:
        finetune: fine-tune here instead of taking the shipped weights.
    """
    start = time.perf_counter()
    found, proof = slim_and_export(finetune)
    accuracy, latency = compare()
    pictures()
    result = summary(found, proof, accuracy, latency, by_image())
    result["seconds"] = round(time.perf_counter() - start)
    write_text(OUT / "summary.json", json.dumps(result, indent=2) + "\n")
    Console().print(table(result))
    parity = result["parity"]
    print(
        f"slim.onnx computes what its schedule says: {parity['relative']:.1e} of the logits' scale "
        f"on {parity['rows']} photographs (allowed {parity['tolerance']:.0e})\n"
        f"with each image's most similar patches merged, untrained: "
        f"top-1 {result['by_image']['top1']:.2%}\n"
        f"pictures: {OUT / 'lifetimes.png'}, {OUT / 'kept_patches.png'}, "
        f"{OUT / 'kept_by_image.png'}\n"
        f"all of it, with the protocol: {OUT / 'summary.json'}   {result['seconds']} s"
    )


if __name__ == "__main__":
    App(default_command=main)()
