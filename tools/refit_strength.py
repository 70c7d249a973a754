"""One strength of the refit's ridge for all layers, or one for each, chosen on images held out.

    python -m tools.refit_strength --study elpv_vit_tiny

For positions that are the same for all images (`cover`) and for `slim --dynamic predictor`, with
geometric counts. Judged by what the head reads of validation images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from torch import Tensor

from slimdeploy.console import note
from slimdeploy.files import write_text
from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.choices import Strength
from slimdeploy.slim.dynamic import DynamicRequest, DynamicVit, dynamic_model, refit_dynamic
from slimdeploy.slim.model import SlimVit
from slimdeploy.slim.pipeline import SlimRequest, slim_model
from slimdeploy.slim.refit import refit_model
from tools.refit_table import ABOUT_CELLS, CELLS, IMAGES, Bench

app = App(help="The strength of the refit's ridge, measured.")
PAGE = Path("docs/bench/refit_strength.md")
TRIED: tuple[Strength | None, ...] = (None, 0.01, 0.1, 1.0, 10.0, "auto")

Refitted = Callable[[Any, RidgeOptions | None], Any]
"""A slim model that uses a dense one's parameters, which are refitted in place before."""


def static(bench: Bench, images: Tensor, budget: float) -> Refitted:
    """Positions of one search."""
    request = SlimRequest(mac_reduction=budget, reconstruct="none")
    found = slim_model(bench.model, bench.geometry, images, request).layers
    keep = [list(layer.keep) for layer in found]
    state = Calibration(bench.model, bench.geometry, images)

    def refitted(model: Any, options: RidgeOptions | None) -> Any:
        if options is not None:
            refit_model(state, model, keep, options)
        return SlimVit(model, keep)

    return refitted


def by_image(bench: Bench, images: Tensor, budget: float) -> Refitted:
    """Scorers of one fit."""
    request = DynamicRequest("predictor", budget, refit=None)
    found = dynamic_model(bench.model, bench.geometry, images, request)
    counts = [len(layer.keep) for layer in found.layers]
    state = Calibration(bench.model, bench.geometry, images)

    def refitted(model: Any, options: RidgeOptions | None) -> Any:
        slim = DynamicVit(model, counts, found.dynamic, bench.geometry.head_reads)
        if options is not None:
            refit_dynamic(state, slim, options)
        return slim

    return refitted


@app.default
def table(
    *,
    study: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ("elpv_vit_tiny",),
    mac_reduction: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (0.46, 0.6),
    output: Path = PAGE,
) -> None:
    """Measure every strength for both forms at every budget and write the page."""
    lines = []
    for name in study:
        bench = Bench.of(name, 1000)
        images = bench.calibration(IMAGES)
        for budget in mac_reduction:
            for form, make in (("cover", static), ("predictor", by_image)):
                refitted = make(bench, images, budget)
                for strength in TRIED:
                    options = None if strength is None else RidgeOptions(strength)
                    cells = bench.cells(refitted(copy.deepcopy(bench.model), options))
                    asked = "no refit" if strength is None else strength
                    lines.append(f"| {name} | {budget:.0%} | `{form}` | {asked} | {cells} |")
                    note(lines[-1])
    write_text(output, _page(lines, study))


def _page(lines: Sequence[str], studies: Sequence[str]) -> str:
    return f"""# Strength of the refit's ridge

Made by `python -m tools.refit_strength --study {" ".join(studies)}`: geometric counts, {IMAGES}
calibration images, seed 0, in bfloat16, on the 263 validation images. `auto`: for each layer the
best of seven strengths on every fourth calibration image, or no change.

{ABOUT_CELLS}

| model | fewer MACs | chosen by | strength | {CELLS} |
|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


if __name__ == "__main__":
    app()
