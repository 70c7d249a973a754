"""ToMe: merge the most similar tokens, some in every block (Bolya et al., ICLR 2023).

After attention, tokens are put into two sets in turn; each of the first finds the one of the
second whose key (mean over heads) has the largest cosine to its own; the r most similar pairs
merge into their mean, weighted by how many patches each token stands for. Attention adds the
logarithm of that number to the logits of a key. The class token never merges into another.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from slimdeploy.slim.model import attention_half, mlp_half, queries_keys_values
from slimdeploy.slim.types import VitBlock
from tools.peers.base import READ, PeerVit, mix, residual


class TomeVit(PeerVit):
    """ToMe with proportional attention."""

    def begin(self, x: Tensor) -> None:
        self.size = torch.ones_like(x[..., :1])

    def attend(self, block: VitBlock, x: Tensor, count: int) -> Tensor:
        q, k, v = queries_keys_values(block.attn, block.norm1(x), None)
        logits = q * block.attn.scale @ k.transpose(-2, -1) + self._bias()[:, None, None]
        after = residual(block, x, mix(block, logits.softmax(-1), v))
        if count == x.shape[1]:
            return after
        merged, self.size = merge(after, self.size, k.mean(1), x.shape[1] - count)
        return merged

    def finish(self, block: VitBlock, x: Tensor) -> Tensor:
        rows = READ.to(x.device)
        return mlp_half(block, attention_half(block, x, rows, self._bias()))

    def _bias(self) -> Tensor:
        return self.size[..., 0].log()


def merge(x: Tensor, size: Tensor, keys: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching: `r` tokens fewer, and how many patches each stands for.

    Args:
        x: tokens, [B, k, D]; the first is the class token.
        size: patches per token, [B, k, 1].
        keys: what similarity is measured by, [B, k, d].
        r: at most half the patches.
    """
    metric = F.normalize(keys, dim=-1)
    similar = metric[:, ::2] @ metric[:, 1::2].transpose(-2, -1)
    similar[:, 0] = -torch.inf  # the class token is in the first set, and stays
    best, partner = similar.max(-1)
    order = best.argsort(dim=1, descending=True, stable=True)
    gone, stay = order[:, :r], order[:, r:].sort(1).values
    to = partner.gather(1, gone)[..., None]

    def joined(values: Tensor) -> Tensor:
        first, second = values[:, ::2], values[:, 1::2]
        moved = first.gather(1, gone[..., None].expand(-1, -1, values.shape[-1]))
        summed = second.scatter_add(1, to.expand_as(moved), moved)
        left = first.gather(1, stay[..., None].expand(-1, -1, values.shape[-1]))
        return torch.cat([left, summed], dim=1)

    total = joined(size)
    return joined(x * size) / total, total
