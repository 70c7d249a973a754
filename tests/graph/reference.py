"""The compact semantics in plain PyTorch: what a slim graph has to compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def compact(model: Any, image: Floats, keep: Sequence[Sequence[int]]) -> Floats:
    """Logits of a timm ViT of which block l+1 computes the tokens keep[l] only."""
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(torch.from_numpy(image))))
        held = list(range(x.shape[1]))
        for block, ids in zip(model.blocks, keep, strict=True):
            local = torch.tensor([held.index(i) for i in ids])
            x = x.index_select(1, local) + block.ls1(_attention(block, x, local))
            x = x + block.ls2(block.mlp(block.norm2(x)))
            held = list(ids)
        logits: Floats = model.forward_head(model.norm(x)).numpy()
    return logits


def _attention(block: Any, x: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """Queries for the tokens at `local`; keys and values for all of x."""
    attention = block.attn
    qkv = attention.qkv(block.norm1(x)).unflatten(2, (3, attention.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q.index_select(2, local) @ k.mT * attention.scale).softmax(-1)
    result: torch.Tensor = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    return result


def random_keep(
    seed: int, depth: int, tokens: int, always: Sequence[int], last: Sequence[int] | None = None
) -> list[list[int]]:
    """Random nested ids, each list with `always` in it; the last one is `last` if given."""
    rng = np.random.default_rng(seed)
    keep: list[list[int]] = []
    held = list(range(tokens))
    for _ in range(depth):
        held = sorted({*always, *(i for i in held if rng.random() < 0.7)})
        keep.append(held)
    if last is not None:
        keep[-1] = list(last)
    return keep
