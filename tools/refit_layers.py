"""Which layers of a block the closed-form refit should solve for, on the demo's model.

    python -m tools.refit_layers

`slimdeploy` solves for the attention's projection and the MLP's second layer. Here each of them is
left out, the layers before them (queries, keys and values; the MLP's first layer) are solved for
too, towards what the dense block's compute of the same tokens, and the whole is done twice. Judged
as `tools.refit_table` does: by what the head reads of validation images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from torch import Tensor, nn

from slimdeploy.console import note
from slimdeploy.files import write_text
from slimdeploy.forward.ridge import Normal, RidgeOptions
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.choices import Strength
from slimdeploy.slim.model import (
    SlimVit,
    attention_half,
    attention_mix,
    embed,
    local_rows,
    mlp_half,
    project,
    select,
)
from slimdeploy.slim.pipeline import SlimRequest, slim_model
from slimdeploy.slim.refit import token_weights
from tools.refit_table import IMAGES, Bench

app = App(help="Which layers the refit should solve for.")
PAGE = Path("docs/bench/refit_layers.md")
STUDY = "elpv_vit_tiny"  # without LayerScale, which this would have to fold first
PROJECTION, SECOND, QKV, FIRST = "projection", "second", "qkv", "first"
TRIED: dict[str, tuple[set[str], int]] = {
    "none": (set(), 1),
    "projection": ({PROJECTION}, 1),
    "MLP's second layer": ({SECOND}, 1),
    "**both**": ({PROJECTION, SECOND}, 1),
    "both; queries, keys and values": ({PROJECTION, SECOND, QKV}, 1),
    "both; MLP's first layer": ({PROJECTION, SECOND, FIRST}, 1),
    "all of these": ({PROJECTION, SECOND, QKV, FIRST}, 1),
    "both, twice over": ({PROJECTION, SECOND}, 2),
}


def solve(
    linear: nn.Linear, pairs: Iterable[tuple[Tensor, Tensor]], weights: Tensor, strength: Strength
) -> None:
    """Ridge regression of a layer in place, on (inputs [B, q, I], wanted outputs [B, q, O])."""
    normal = Normal(linear.bias is not None, judged=strength == "auto")
    for inputs, wanted in pairs:
        normal.add_images(inputs.numpy(), (wanted - linear(inputs)).numpy(), weights.numpy())
    change, shift = normal.solve(strength)
    linear.weight.data += torch.from_numpy(change.T).float()
    if shift is not None:
        linear.bias.data += torch.from_numpy(shift).float()


@dataclass(frozen=True)
class Refit:
    """A refit of chosen layers, on the calibration images of `state`."""

    state: Calibration
    keep: Sequence[Sequence[int]]
    layers: set[str]
    options: RidgeOptions

    @torch.no_grad()
    def run(self, model: Any) -> None:
        """Solve in place, block by block, as the slim and the dense stream run side by side."""
        state = self.state
        dense = [embed(state.dense, images) for images in state.batches()]
        stream = [embed(model, images) for images in state.batches()]
        rows, held = local_rows(self.keep, state.tokens), range(state.tokens)
        for index, (block, other) in enumerate(zip(model.blocks, state.dense.blocks, strict=True)):
            ids = self.keep[index]
            if QKV in self.layers:
                known = [other.attn.qkv(other.norm1(x[:, list(held)])) for x in dense]
                self._solve(block.attn.qkv, [block.norm1(x) for x in stream], known, held)
            after = [attention_half(other, x, None) for x in dense]
            dense = [mlp_half(other, x) for x in after]
            stream = self._attended(block, stream, rows[index], [x[:, ids] for x in after], ids)
            if FIRST in self.layers:
                known = [other.mlp.fc1(other.norm2(x[:, ids])) for x in after]
                self._solve(block.mlp.fc1, [block.norm2(x) for x in stream], known, ids)
            if SECOND in self.layers:
                hidden = [block.mlp.act(block.mlp.fc1(block.norm2(x))) for x in stream]
                missing = [y[:, ids] - x for x, y in zip(stream, dense, strict=True)]
                self._solve(block.mlp.fc2, hidden, missing, ids)
            stream, held = [mlp_half(block, x) for x in stream], ids

    def _attended(
        self,
        block: Any,
        stream: list[Tensor],
        rows: Tensor | None,
        wanted: list[Tensor],
        ids: Sequence[int],
    ) -> list[Tensor]:
        """The stream after attention, its projection solved for if that is asked."""
        base = [select(x, rows) for x in stream]
        mixes = [attention_mix(block, x, rows) for x in stream]
        if PROJECTION in self.layers:
            missing = [y - x for x, y in zip(base, wanted, strict=True)]
            self._solve(block.attn.proj, mixes, missing, ids)
        return [x + project(block.attn, mix) for x, mix in zip(base, mixes, strict=True)]

    def _solve(
        self, linear: nn.Linear, inputs: list[Tensor], wanted: list[Tensor], ids: Sequence[int]
    ) -> None:
        weights = token_weights(ids, self.state.geometry.head_reads, self.options)
        solve(linear, zip(inputs, wanted, strict=True), weights, self.options.strength)


@app.default
def table(
    *,
    mac_reduction: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (0.46, 0.6),
    output: Path = PAGE,
) -> None:
    """Measure every choice of layers at every budget and write the page."""
    bench, options = Bench.of(STUDY, 1000), RidgeOptions()
    images = bench.calibration(IMAGES)
    cells: dict[str, list[str]] = {name: [] for name in TRIED}
    for budget in mac_reduction:
        request = SlimRequest(mac_reduction=budget, reconstruct="none")
        found = slim_model(bench.model, bench.geometry, images, request).layers
        keep = [list(layer.keep) for layer in found]
        for name, (layers, passes) in TRIED.items():
            model, state = (
                copy.deepcopy(bench.model),
                Calibration(bench.model, bench.geometry, images),
            )
            for _ in range(passes):
                Refit(state, keep, layers, options).run(model)
            judged = bench.judge(SlimVit(model, keep))
            cells[name].append(f"{judged['error']:.4f} | {judged['top1']:.1%}")
            note(f"{budget:.0%}, {name}: {cells[name][-1]}")
    write_text(output, _page(mac_reduction, cells, len(bench.labels)))


def _page(budgets: Sequence[float], cells: dict[str, list[str]], n: int) -> str:
    head = " | ".join(f"{budget:.0%} fewer MACs: error | top-1" for budget in budgets)
    lines = [f"| {name} | {' | '.join(found)} |" for name, found in cells.items()]
    return f"""# Layers of the closed-form refit

Made by `python -m tools.refit_layers`: the demo's model, one search (`cover`, geometric counts),
{IMAGES} calibration images, {n} validation images. Error: squared, of what the head reads, as a
share of its variance over the images. What `slimdeploy` does stands out.

| solved for | {head} |
|---|{"---|---|" * len(budgets)}
{chr(10).join(lines)}
"""


if __name__ == "__main__":
    app()
