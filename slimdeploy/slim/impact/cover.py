"""Kept tokens that the dropped ones can be predicted from; the same as `forward/cover.py`.

What a dropped token would have said is lost only as far as it cannot be told from the tokens that
stay: the refit behind it is linear and has a bias. Tokens are normalised as a LayerNorm would, with
their mean over images taken off; the error of each weighs with the squared attention that it
receives in the next block from the tokens kept there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from slimdeploy.cover_ranks import cover_ranks
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.model import attention_map


class CoverImpact:
    """Greedy choice of tokens by what they leave unpredicted of the others."""

    @torch.no_grad()
    def scores(self, state: Calibration, layer: int) -> Tensor:
        kept = sorted({*state.keep[layer + 1], *state.protected})
        gram, received = token_gram(state, layer), received_squares(state, layer)
        return torch.from_numpy(cover_ranks(gram.numpy(), received.numpy(), kept))


@torch.no_grad()
def token_gram(state: Calibration, layer: int) -> Tensor:
    """Inner products of tokens over images and features, [N, N], means over images taken off."""
    mean = torch.zeros(state.tokens, state.geometry.width, dtype=torch.float64)
    for (after,) in state.streams(layer):
        mean += _normalised(after).double().sum(0)
    mean /= len(state.images)
    gram = torch.zeros(state.tokens, state.tokens, dtype=torch.float64)
    for (after,) in state.streams(layer):
        x = (_normalised(after) - mean).float()
        gram += torch.einsum("bnd,bmd->nm", x, x).double()
    return gram / len(state.images)


def _normalised(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


@torch.no_grad()
def received_squares(state: Calibration, layer: int) -> Tensor:
    """Mean squared attention that each token gets in the next block, from what is kept there."""
    queries = torch.tensor(state.keep[layer + 1])
    total = torch.zeros(state.tokens, dtype=torch.float64)
    for (after,) in state.streams(layer):
        maps = attention_map(state.dense.blocks[layer], after, queries)
        total += maps.double().square().mean((1, 2)).sum(0)
    return total / len(state.images)
