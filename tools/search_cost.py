"""What a search costs: `python -m tools.search_cost --output docs/bench`.

Runs `slimdeploy slim --model` itself, each run in a process of its own whose CPU seconds and peak
of resident memory the system gives. From one centre (ViT-S at 224 pixels, 256 images) each of
estimator, images, tokens and depth is changed alone, and one large model is run as users would.

Every finished row is kept in OUTPUT/search.json, so a killed run goes on where it was; the table is
OUTPUT/search.md. Weights are random except DINOv2's, if its file is given: the cost is the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cyclopts import App
from PIL import Image

from slimdeploy.console import note
from slimdeploy.files import write_text
from slimdeploy.measure.host import cpu_name

app = App(help="Measure what a search costs.")

BUILD = Path("build/search_cost")
REDUCTION = 0.46


@dataclass(frozen=True)
class Case:
    """One command. All images are looked at by the search unless `search_images` says otherwise."""

    impact: str = "joint"
    images: int = 256
    tokens: int = 197
    depth: int = 12
    reconstruct: str = "none"
    search_images: int | None = None
    shape: str = "geometric"

    @property
    def model(self) -> str:
        """timm's name of the ViT-S with so many tokens and blocks."""
        if self.depth == 36:
            return "vit_small_patch16_36x1_224"
        return {
            197: "vit_small_patch16_224",
            577: "vit_small_patch16_384",
            1370: "vit_small_patch14_dinov2",
        }[self.tokens]

    @property
    def name(self) -> str:
        """Key of the row."""
        seen = self.search_images or self.images
        words = (self.impact, f"{seen}of{self.images}", self.tokens, self.depth, self.reconstruct)
        return "-".join(map(str, (*words, self.shape)))

    def command(self, checkpoint: Path) -> list[str]:
        """The program and its words."""
        words = {
            "model": self.model,
            "checkpoint": checkpoint,
            "data-dir": BUILD / "images",
            "mac-reduction": REDUCTION,
            "impact": self.impact,
            "images": self.images,
            "search-images": self.search_images or self.images,
            "reconstruct": self.reconstruct,
            "shape": self.shape,
            "output": BUILD / "out" / "sched.json",
        }
        flags = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
        return [sys.executable, "-m", "slimdeploy", "slim", *flags]


CENTRE = Case()
CASES = (
    CENTRE,
    Case(impact="cover"),
    Case(images=64),
    Case(impact="path", images=64),
    Case(impact="attention", images=64),
    Case(impact="cover", search_images=64, reconstruct="refit", shape="auto"),
    Case(impact="cover", images=64),
    Case(impact="cover", images=64, tokens=577),
    Case(impact="cover", images=64, tokens=1370),
    Case(impact="cover", images=64, depth=36),
    Case(impact="cover", search_images=64, reconstruct="refit"),
    Case(impact="cover", images=2048, search_images=64, reconstruct="refit"),
    Case(images=8, tokens=1370),
    Case(impact="path", images=8, tokens=1370),
    Case(images=64, depth=36),
    Case(images=64, tokens=577),
    Case(images=128),
    Case(impact="path"),
    Case(impact="attention"),
    Case(impact="path", images=64, tokens=577),
    Case(impact="path", images=64, depth=36),
    Case(images=64, tokens=1370),
    Case(impact="path", images=64, tokens=1370),
    Case(impact="cover", images=256, tokens=1370, search_images=64, reconstruct="refit"),
)


@dataclass(frozen=True)
class Row:
    """One measured command.

    Attributes:
        wall: seconds by the clock; says little where `load` exceeds the cores.
        cpu: seconds of the CPU, user and system.
        peak: largest resident memory, bytes.
        load: processes that wanted a core in the minute before.
    """

    wall: float
    cpu: float
    peak: int
    load: float


@app.default
def measure(
    *,
    output: Path = Path("docs/bench"),
    dinov2: Path | None = None,
    most: int | None = None,
) -> None:
    """Measure every case that is not in the record yet.

    Args:
        output: folder of search.json and search.md.
        dinov2: weights of vit_small_patch14_dinov2 (default: random ones).
        most: cases to measure now (default: all that are left).
    """
    record = output / "search.json"
    found = json.loads(record.read_text()) if record.is_file() else {"rows": {}}
    found.update(cpu=cpu_name(), cores=os.cpu_count(), mac_reduction=REDUCTION)
    draw_images(max(case.images for case in CASES))
    for case in [case for case in CASES if case.name not in found["rows"]][:most]:
        note(f"{case.name}: measuring")
        weights = dinov2 if dinov2 and case.tokens == 1370 else random_weights(case.model)
        found["rows"][case.name] = {**asdict(case), **asdict(run(case.command(weights)))}
        write_text(record, json.dumps(found, indent=2) + "\n")
        write_text(output / "search.md", table(found))


def run(words: list[str]) -> Row:
    """Run a program to its end; what it cost."""
    load, start = os.getloadavg()[0], time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(words)}: ended with {child.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return Row(time.perf_counter() - start, cpu, usage.ru_maxrss * 1024, load)


def draw_images(count: int) -> None:
    """A flat folder of random pictures, smooth enough to be decoded and resized as photographs."""
    folder, generator = BUILD / "images", np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        path = folder / f"{index:03d}.png"
        if not path.is_file():
            Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC).save(path)


def random_weights(model: str) -> Path:
    """A weights file of a timm model with random weights."""
    path = BUILD / f"{model}.safetensors"
    if not path.is_file():
        import timm
        import torch

        from slimdeploy.slim.checkpoint import save_weights
        from slimdeploy.slim.timm_models import model_preprocessing

        torch.manual_seed(0)
        made = timm.create_model(model)
        save_weights(made, path, name=model, preprocessing=model_preprocessing(made))
    return path


def table(found: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    lines = [
        f"What `slimdeploy slim --model` costs: ViT-S, {found['mac_reduction']:.0%} fewer MACs, "
        f"{found['cpu']}, {found['cores']} cores, float32. The whole command, weights and images "
        "read, in a process of its own. Where more processes wanted a core than there are (load), "
        "seconds by the clock say little; CPU seconds are then an upper bound. Peak: resident "
        "memory, pages of temporary files included, which the system takes back where it is short. "
        "Made by `python -m tools.search_cost`.",
        "",
        "| impact | searched / drawn images | tokens | blocks | counts | reconstruct | CPU s "
        "| wall s | load before | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"].values():
        seen = row["search_images"] or row["images"]
        lines.append(
            f"| {row['impact']} | {seen} / {row['images']} | {row['tokens']} | {row['depth']} | "
            f"{row['shape']} | {row['reconstruct']} | {row['cpu']:.0f} | {row['wall']:.0f} | "
            f"{row['load']:.1f} | {row['peak'] / 2**30:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app()
