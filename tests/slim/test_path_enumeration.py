"""The path score against Eq. 6 of Patch Slimming, written out: loops over images, heads and tokens.

Nothing of slimdeploy takes part in the reference. A small ViT is computed from its weights with
numpy, and every product of attention probabilities along every path of heads and tokens is summed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.impact import make_impact
from slimdeploy.slim.timm_models import describe

DEPTH, HEADS, WIDTH, TOKENS = 3, 2, 16, 5
KEEP = {3: [0], 2: [0, 2, 3], 1: [0, 2, 3, 4]}
Array = np.ndarray


class Reference:
    """A ViT of three blocks in float64, of which the blocks above a layer keep fewer tokens."""

    def __init__(self, model: Any) -> None:
        self.state = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return centred / scale * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def embedding(self, image: Array) -> Array:
        kernel = self.state["patch_embed.proj.weight"].reshape(WIDTH, -1)
        patches = image.reshape(3, 2, 16, 2, 16).transpose(1, 3, 0, 2, 4).reshape(4, -1)
        tokens = patches @ kernel.T + self.state["patch_embed.proj.bias"]
        return np.concatenate([self.state["cls_token"][0], tokens]) + self.state["pos_embed"][0]

    def probabilities(self, block: int, x: Array) -> Array:
        """[heads, tokens, tokens]: softmax of Q K^T / sqrt(d)."""
        qkv = self.linear(self.norm(x, f"blocks.{block}.norm1"), f"blocks.{block}.attn.qkv")
        q, k, _ = qkv.reshape(len(x), 3, HEADS, -1).transpose(1, 2, 0, 3)
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(WIDTH / HEADS)
        exponents = np.exp(scores - scores.max(-1, keepdims=True))
        return exponents / exponents.sum(-1, keepdims=True)

    def block(self, block: int, x: Array, rows: list[int]) -> Array:
        """What leaves a block that computes only `rows` of its input."""
        name = f"blocks.{block}"
        values = self.linear(self.norm(x, f"{name}.norm1"), f"{name}.attn.qkv")[:, 2 * WIDTH :]
        mixed = [
            head @ values[:, part]
            for head, part in zip(
                self.probabilities(block, x)[:, rows],
                np.split(np.arange(WIDTH), HEADS),
                strict=True,
            )
        ]
        y = x[rows] + self.linear(np.concatenate(mixed, axis=1), f"{name}.attn.proj")
        hidden = self.linear(self.norm(y, f"{name}.norm2"), f"{name}.mlp.fc1")
        gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        return y + self.linear(gelu, f"{name}.mlp.fc2")


def enumerated(reference: Reference, images: Array, layer: int) -> Array:
    """sum over images and head paths of ||A[:, i]||^2 ||U[i, :]||^2, for every token i."""
    total = np.zeros(TOKENS)
    everyone = list(range(TOKENS))
    for image in images:
        before = reference.embedding(image)
        for block in range(layer - 1):
            before = reference.block(block, before, everyone)
        own = reference.probabilities(layer - 1, before)
        maps, ids = [], everyone  # of the layers above, the first of them first
        stream = reference.block(layer - 1, before, everyone)
        for above in range(layer + 1, DEPTH + 1):
            rows = [ids.index(token) for token in KEEP[above]]
            small = reference.probabilities(above - 1, stream)[:, rows]
            full = np.zeros((HEADS, TOKENS, TOKENS))
            for h, (i, row), (j, column) in itertools.product(
                range(HEADS), enumerate(KEEP[above]), enumerate(ids)
            ):
                full[h, row, column] = small[h, i, j]
            maps.append(full)
            stream = reference.block(above - 1, stream, rows)
            ids = KEEP[above]
        for i in everyone:
            for head in range(HEADS):
                u = [
                    sum(own[head, i, j] * abs(before[j, d]) for j in everyone) for d in range(WIDTH)
                ]
                energy = sum(x * x for x in u)
                for heads in itertools.product(range(HEADS), repeat=len(maps)):
                    for end in everyone:
                        weight = paths(maps, heads, end, i)
                        total[i] += weight * weight * energy
    return total / len(images)


def paths(maps: list[Array], heads: tuple[int, ...], end: int, start: int) -> float:
    """A[end, start]: attention summed over all ways from the token `start` up to `end`."""
    weight = 0.0
    for middle in itertools.product(range(TOKENS), repeat=len(maps) - 1):
        way, product = [start, *middle, end], 1.0
        for step, (matrix, head) in enumerate(zip(maps, heads, strict=True)):
            product *= matrix[head, way[step + 1], way[step]]
        weight += product
    return weight


@pytest.mark.parametrize("layer", [1, 2])
def test_the_path_score_is_eq_6_written_out(make_vit: Callable[..., Any], layer: int) -> None:
    model = make_vit(img_size=32, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    state = Calibration(model, describe(model, "small"), images, batch_size=2)
    state.keep = {above: KEEP[above] for above in range(layer + 1, DEPTH + 1)}
    assert state.tokens == TOKENS
    found = make_impact("path").scores(state, layer).numpy()
    wanted = enumerated(Reference(model), images.double().numpy(), layer)
    # The estimator takes means over heads where Eq. 6 sums: one factor for all tokens.
    factor = HEADS ** (DEPTH - layer + 1)
    assert found * factor == pytest.approx(wanted, rel=1e-4)
    assert wanted.max() / wanted.min() > 1.5
