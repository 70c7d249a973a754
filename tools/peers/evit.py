"""EViT: keep the patches that the class token attends to, fuse the rest (Liang et al., ICLR 2022).

In a few blocks, after attention, the patches with the largest attention from the class token
(mean over heads) go on. The others become one token, their mean weighted by that attention, which
takes its place behind the kept ones and is treated as a patch from there on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimdeploy.slim.model import queries_keys_values
from slimdeploy.slim.types import VitBlock
from tools.peers.base import PeerVit, mix, residual


class EvitVit(PeerVit):
    """EViT with token fusion."""

    def attend(self, block: VitBlock, x: Tensor, count: int) -> Tensor:
        q, k, v = queries_keys_values(block.attn, block.norm1(x), None)
        weights = (q * block.attn.scale @ k.transpose(-2, -1)).softmax(-1)
        after = residual(block, x, mix(block, weights, v))
        if count == x.shape[1]:
            return after
        return fused(after, weights[:, :, 0, 1:].mean(1), count - 2)


def fused(x: Tensor, attention: Tensor, kept: int) -> Tensor:
    """Class token, the `kept` best patches in their order, and the rest fused into one.

    Args:
        x: tokens, [B, k, D].
        attention: the class token's for each patch, [B, k - 1].
    """
    order = attention.argsort(dim=1, descending=True, stable=True)
    best = order[:, :kept].sort(1).values
    patches = x[:, 1:]
    rest = attention.scatter(1, best, 0.0)
    share = rest / rest.sum(1, keepdim=True).clamp_min(1e-12)
    one = (share[..., None] * patches).sum(1, keepdim=True)
    chosen = patches.gather(1, best[..., None].expand(-1, -1, x.shape[-1]))
    return torch.cat([x[:, :1], chosen, one], dim=1)
