"""Does it pay to merge a token that leaves into the kept one most like it? A measurement.

    python -m tools.static_merging

ToMe averages tokens that are alike, image by image. With positions that are the same for every
image the average is a constant matrix, which an export could fold in: before a block drops tokens,
each kept token becomes (its own value + share * the sum of those that leave into it) / its weight.
Who leaves into whom is decided by the mean cosine of the dense block's output over calibration
images. Judged on the validation images of the demo's data set, before and after the refit.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from torch import Tensor
from torch.nn import functional as F

from slimdeploy.cli.common import load_arrays
from slimdeploy.console import note
from slimdeploy.files import write_text
from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.images import ImageFolder
from slimdeploy.slim.model import embed, local_rows, slim_block
from slimdeploy.slim.pipeline import SlimRequest, slim_model
from slimdeploy.slim.refit import refit_block, token_weights
from slimdeploy.slim.timm_models import describe, load_model

app = App(help="Static merging of dropped tokens into kept ones, measured.")
PAGE = Path("docs/bench/static_merging.md")
NAME, WEIGHTS = "vit_tiny_patch16_224", Path("models/elpv_vit_tiny/model.safetensors")
DATA = Path("build/elpv")
SHARES = (0.0, 0.1, 0.3, 1.0)
_BATCH = 32


def dense_streams(model: Any, images: Tensor) -> list[list[Tensor]]:
    """Residual stream after embedding and after each block: [layer][batch] of [B, N, D]."""
    streams = [[embed(model, part) for part in images.split(_BATCH)]]
    for block in model.blocks:
        streams.append([slim_block(block, x, None) for x in streams[-1]])
    return streams


def likeness(stream: Sequence[Tensor]) -> Tensor:
    """Mean cosine between positions, [N, N], of a stream less its mean token."""
    x = torch.cat(list(stream))
    x = F.normalize(x - x.mean((0, 1)), dim=-1)
    return torch.einsum("bnd,bmd->nm", x, x) / len(x)


def merging(alike: Tensor, keep: Sequence[int], before: Sequence[int], share: float) -> Tensor:
    """The constant matrix [k, k] over the tokens `before`; only rows of kept patches change.

    The class token (0) takes nothing in: it is no patch.
    """
    place = {token: row for row, token in enumerate(before)}
    matrix, patches = torch.eye(len(before)), [token for token in keep if token != 0]
    for token in set(before) - set(keep):
        if patches:
            nearest = patches[int(alike[token, patches].argmax())]
            matrix[place[nearest], place[token]] = share
    return matrix / matrix.sum(1, keepdim=True)


@torch.no_grad()
def read(model: Any, images: Tensor, every: Sequence[Any], matrices: Sequence[Tensor]) -> Tensor:
    """What the head reads, [n, D]."""
    found = []
    for part in images.split(_BATCH):
        x = embed(model, part)
        for block, rows, matrix in zip(model.blocks, every, matrices, strict=True):
            x = slim_block(block, matrix @ x, rows)
        found.append(model.norm(x)[:, 0])
    return torch.cat(found)


@torch.no_grad()
def refitted(
    dense: Any,
    streams: Sequence[Sequence[Tensor]],
    keep: Sequence[Sequence[int]],
    every: Sequence[Any],
    matrices: Sequence[Tensor],
) -> Any:
    """A copy of the model, block after block refitted behind the merging."""
    model, options, inputs = copy.deepcopy(dense), RidgeOptions(), list(streams[0])
    for layer, block in enumerate(model.blocks):
        inputs = [matrices[layer] @ x for x in inputs]
        ids, weights = torch.tensor(keep[layer]), token_weights(keep[layer], [0], options)
        refit_block(
            block, dense.blocks[layer], inputs, streams[layer], every[layer], ids, weights, options
        )
        inputs = [slim_block(block, x, every[layer]) for x in inputs]
    return model


@app.default
def table(
    *,
    mac_reduction: Annotated[list[float], Parameter(consume_multiple=True)] = [0.46, 0.6],  # noqa: B006
    images: int = 192,
    output: Path = PAGE,
) -> None:
    """Measure every share at every budget and write the page."""
    dense, preprocessing = load_model(NAME, WEIGHTS, {})
    geometry = describe(dense, NAME, {})
    drawn = ImageFolder.open(DATA, "train").sample(images, 0)
    calibration = torch.from_numpy(load_arrays(drawn, preprocessing))
    held = ImageFolder.open(DATA, "val")
    judged, labels = torch.from_numpy(load_arrays(held, preprocessing)), torch.tensor(held.labels)
    streams = dense_streams(dense, calibration)
    alike = [likeness(stream) for stream in streams[1:]]
    whole = [torch.eye(geometry.tokens)] * geometry.depth
    wanted = read(dense, judged, [None] * geometry.depth, whole)

    def cells(model: Any, every: Sequence[Any], matrices: Sequence[Tensor]) -> str:
        found = read(model, judged, every, matrices)
        error = (found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
        top1 = float((dense.head(found).argmax(1) == labels).float().mean())
        return f"{float(error):.3f} | {top1:.1%}"

    lines = []
    for budget in mac_reduction:
        request = SlimRequest(mac_reduction=budget, reconstruct="none")
        layers = slim_model(dense, geometry, calibration, request, progress=note).layers
        keep = [list(layer.keep) for layer in layers]
        befores, every = [list(range(geometry.tokens)), *keep], local_rows(keep, geometry.tokens)
        for share in SHARES:
            matrices = [
                merging(*part, share) for part in zip(alike, keep, befores[:-1], strict=True)
            ]
            before = cells(dense, every, matrices)
            after = cells(refitted(dense, streams, keep, every, matrices), every, matrices)
            lines.append(f"| {budget:.0%} | {share} | {before} | {after} |")
            note(lines[-1])
    top1 = float((dense.head(wanted).argmax(1) == labels).float().mean())
    write_text(output, _page(lines, len(labels), top1, images))


def _page(lines: Sequence[str], n: int, top1: float, images: int) -> str:
    return f"""# Static merging

Made by `python -m tools.static_merging`: the demo's model, {images} calibration images, {n}
validation images, dense top-1 {top1:.1%}. Share 0 is dropping. Error: squared, of what the head
reads, as a share of its variance over the images.

| fewer MACs | share | error | top-1 | error after refit | top-1 after refit |
|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


if __name__ == "__main__":
    app()
