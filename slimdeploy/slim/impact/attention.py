"""Scores from one block's attention alone: controls for the paper's path score (its Fig. 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.model import attention_map, attention_mix


class OwnAttentionImpact:
    """Norm of what the block's own attention gives a token: ||concat_h P^h V^h||² at its row."""

    @torch.no_grad()
    def scores(self, state: Calibration, layer: int) -> Tensor:
        total = torch.zeros(state.tokens, dtype=torch.float64)
        for (before,) in state.streams(layer - 1):
            mixed = attention_mix(state.dense.blocks[layer - 1], before, None)
            total += mixed.double().square().sum(-1).sum(0)
        return total / len(state.images)


class ClassAttentionImpact:
    """How much what the head reads attends to a token in the next block (EViT's score)."""

    @torch.no_grad()
    def scores(self, state: Calibration, layer: int) -> Tensor:
        readers = torch.tensor(state.geometry.head_reads)
        total = torch.zeros(state.tokens, dtype=torch.float64)
        for (after,) in state.streams(layer):
            maps = attention_map(state.dense.blocks[layer], after, readers)
            total += maps.double().mean((1, 2)).sum(0)
        return total / len(state.images)
