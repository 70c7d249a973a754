"""Scores of patches that read no softmax, and the choice they lead to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from slimdeploy.dynamic import STANDARDISE_EPSILON, Scorer
from slimdeploy.slim.types import VitBlock


def standardised(x: Tensor) -> Tensor:
    """Tokens with mean 0 and variance 1 over their channels, [..., D]."""
    return F.layer_norm(x, x.shape[-1:], eps=STANDARDISE_EPSILON)


def patch_scores(
    scorer: Scorer, block: VitBlock, x: Tensor, prefix: int, weight: Tensor | None = None
) -> Tensor:
    """Score of every patch that enters `block`, [B, k - prefix] from [B, k, D].

    Larger is kept first. `weight` [D] is the predictor's.
    """
    patches = x[:, prefix:]
    if scorer == "predictor":
        assert weight is not None
        return standardised(patches) @ weight
    if scorer == "token-norm":
        return patches.square().sum(-1)
    return keys(block, patches).square().sum((1, 3))


def keys(block: VitBlock, x: Tensor) -> Tensor:
    """The keys of tokens that enter a block, [B, heads, k, d] from [B, k, D]."""
    attn, size = block.attn, block.attn.attn_dim
    bias = None if attn.qkv.bias is None else attn.qkv.bias[size : 2 * size]
    flat = F.linear(block.norm1(x), attn.qkv.weight[size : 2 * size], bias)
    split: Tensor = attn.k_norm(flat.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2))
    return split


def choose_rows(scores: Tensor, count: int, prefix: int) -> Tensor:
    """Rows of the tokens that stay, [B, count], from the patches' scores, [B, k - prefix].

    Prefix rows first, then patches by falling score, of equal ones the first: what ONNX's TopK
    gives. Attention does not care for the order of its tokens, and a second sort would cost one
    more operator in every layer.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)[:, : count - prefix]
    always = torch.arange(prefix, device=scores.device).expand(len(scores), -1)
    return torch.cat([always, order + prefix], dim=1)
