"""Does one more token, the mean of those that were dropped, help a model that chooses by image?

    python -m tools.rest_token --study elpv_vit_tiny elpv_vit_small

EViT (Liang et al., ICLR 2022) keeps a fused token of what it drops, ToMe (Bolya et al., ICLR 2023)
adds the logarithm of a merged token's size to its attention logits. Here both are put beside `slim
--dynamic predictor`: from the first layer that drops patches on, the mean of all dropped ones runs
along as a token of its own, and its logit as a key is raised by share * log(how many it stands
for). With share 1 and patches that are all alike, nothing is lost at all. Judged after the refit,
by what the head reads of validation images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from torch import Tensor
from torch.nn import functional as F

from slimdeploy.console import note
from slimdeploy.counts import counts_for_scoring
from slimdeploy.dynamic import Dynamic
from slimdeploy.files import write_text
from slimdeploy.forward.ridge import RidgeOptions, ridge_options
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.dynamic import DynamicVit, fit_predictor
from slimdeploy.slim.dynamic.model import take_ids
from slimdeploy.slim.model import attention_half, attention_mix, embed, mlp_half, project, select
from slimdeploy.slim.refit import token_weights
from tools.refit_layers import solve
from tools.refit_table import ABOUT_CELLS, CELLS, IMAGES, Bench

app = App(help="A token for all that were dropped, measured.")
PAGE = Path("docs/bench/rest_token.md")
SHARES: tuple[float | None, ...] = (None, 0.0, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Tokens:
    """What enters a block: the tokens `ids` [B, k], behind them the rest if x has one row more."""

    x: Tensor
    ids: Tensor

    @property
    def rest(self) -> bool:
        """The last row of x stands for the dropped patches."""
        return self.x.shape[1] > self.ids.shape[1]


@dataclass(frozen=True)
class Entry:
    """What a block's attention reads: x [B, k, D], rows that ask [B, q], a bias of keys [B, k]."""

    x: Tensor
    rows: Tensor | None
    bias: Tensor | None
    ids: Tensor


class RestVit(DynamicVit):
    """`DynamicVit` with the mean of the dropped patches as one more token; None: without."""

    def __init__(
        self, dense: Any, counts: Sequence[int], dynamic: Dynamic, share: float | None
    ) -> None:
        super().__init__(dense, counts, dynamic)
        self.share = share
        self.tokens = dense.patch_embed.num_patches + dense.num_prefix_tokens

    def enter(self, index: int, held: Tokens) -> Entry:
        """Choose the patches that block `index` keeps, and put the dropped ones to the rest."""
        x, k = held.x, held.ids.shape[1]
        rows = self.rows(index, x[:, :k])
        ids, bias = take_ids(held.ids, rows), None
        dropped = self.tokens - k
        if held.rest:
            bias = F.pad(torch.zeros_like(held.ids, dtype=x.dtype), (0, 1), value=self._raised(k))
        if self.share is None or rows is None or not self.chooses[index]:
            return Entry(x, rows, bias, ids)
        gone = x[:, :k].sum(1) - select(x, rows).sum(1) + dropped * (x[:, -1] if held.rest else 0)
        rest = gone / (self.tokens - ids.shape[1])
        bias = torch.zeros(x.shape[:2]) if bias is None else bias
        rows = F.pad(rows, (0, 1), value=x.shape[1])
        # The new rest asks; as a key it would count what is still there twice.
        return Entry(torch.cat([x, rest[:, None]], 1), rows, F.pad(bias, (0, 1), value=-1e9), ids)

    def _raised(self, held: int) -> float:
        assert self.share is not None
        return self.share * math.log(self.tokens - held)

    def begin(self, images: Tensor) -> Tokens:
        """All tokens of images."""
        x = embed(self.dense, images)
        return Tokens(x, torch.arange(x.shape[1]).expand(len(x), -1))

    def forward_features(self, images: Tensor) -> Tensor:
        """Final normalised tokens of the last layer, [B, |S_L|, D]."""
        held = self.begin(images)
        for index, block in enumerate(self.dense.blocks):
            entry = self.enter(index, held)
            x = attention_half(block, entry.x, entry.rows, entry.bias)
            held = Tokens(mlp_half(block, x), entry.ids)
        normed: Tensor = self.dense.norm(held.x)
        return normed


def folded(dense: Any) -> Any:
    """A copy whose projections hold the LayerScale behind them, so that they can be solved for."""
    model = copy.deepcopy(dense)
    for block in model.blocks:
        for scale, linear in ((block.ls1, block.attn.proj), (block.ls2, block.mlp.fc2)):
            if (gamma := getattr(scale, "gamma", None)) is not None:
                linear.weight.data.mul_(gamma.data[:, None])
                linear.bias.data.mul_(gamma.data)
                gamma.data.fill_(1.0)
    return model


def targets(dense: Tensor, ids: Tensor, rest: bool) -> Tensor:
    """The dense stream [B, N, D] at kept tokens and, for the rest, its mean over all others."""
    kept = select(dense, ids)
    if not rest:
        return kept
    others = (dense.sum(1) - kept.sum(1)) / (dense.shape[1] - kept.shape[1])
    return torch.cat([kept, others[:, None]], 1)


@torch.no_grad()
def refit(state: Calibration, model: RestVit, options: RidgeOptions) -> None:
    """`slimdeploy.slim.dynamic.refit_dynamic`, with the rest's own target; in place."""
    dense = [embed(state.dense, images) for images in state.batches()]
    stream = [model.begin(images) for images in state.batches()]
    for index, (block, other) in enumerate(
        zip(model.dense.blocks, state.dense.blocks, strict=True)
    ):
        entries = [model.enter(index, held) for held in stream]
        base = [select(entry.x, entry.rows) for entry in entries]
        rest = base[0].shape[1] > entries[0].ids.shape[1]
        weights = token_weights(entries[0].ids[0].tolist(), state.geometry.head_reads, options)
        weights = F.pad(weights, (0, int(rest)), value=1.0)
        mixes = [attention_mix(block, entry.x, entry.rows, entry.bias) for entry in entries]
        after = [attention_half(other, x, None) for x in dense]
        dense = [mlp_half(other, x) for x in after]
        missing = [
            targets(y, entry.ids, rest) - x
            for y, x, entry in zip(after, base, entries, strict=True)
        ]
        solve(block.attn.proj, zip(mixes, missing, strict=True), weights, options.strength)
        base = [x + project(block.attn, mix) for x, mix in zip(base, mixes, strict=True)]
        hidden = [block.mlp.act(block.mlp.fc1(block.norm2(x))) for x in base]
        missing = [
            targets(y, entry.ids, rest) - x
            for y, x, entry in zip(dense, base, entries, strict=True)
        ]
        solve(block.mlp.fc2, zip(hidden, missing, strict=True), weights, options.strength)
        stream = [Tokens(mlp_half(block, x), e.ids) for x, e in zip(base, entries, strict=True)]


@app.default
def table(
    *,
    study: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ("elpv_vit_tiny",),
    mac_reduction: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (0.46, 0.6),
    output: Path = PAGE,
) -> None:
    """Measure every share at every budget and write the page."""
    lines, options = [], ridge_options(None, by_image=True)
    for name in study:
        bench = Bench.of(name, 1000)
        images = bench.calibration(IMAGES)
        for budget in mac_reduction:
            counts = counts_for_scoring(bench.geometry, budget, "geometric")
            state = Calibration(bench.model, bench.geometry, images)
            fitted = fit_predictor(state, counts)
            rows = tuple(None if w is None else tuple(map(float, w)) for w in fitted)
            for share in SHARES:
                dynamic = Dynamic(scorer="predictor", weights=rows)
                model = RestVit(folded(bench.model), counts, dynamic, share)
                refit(state, model, options)
                cell = "none" if share is None else f"{share:g}"
                lines.append(f"| {name} | {budget:.0%} | {cell} | {bench.cells(model)} |")
                note(lines[-1])
    write_text(output, _page(lines, study))


def _page(lines: Sequence[str], studies: Sequence[str]) -> str:
    return f"""# A token for all that were dropped

Made by `python -m tools.rest_token --study {" ".join(studies)}`: `slim --dynamic predictor`,
geometric counts, {IMAGES} calibration images, after the refit, in bfloat16, on the 263 validation
images. "share": how much of the logarithm of its size is added to the rest's logits as a key;
"none" has no such token, and is what slimdeploy offers.

{ABOUT_CELLS}

| model | fewer MACs | share | {CELLS} |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


if __name__ == "__main__":
    app()
