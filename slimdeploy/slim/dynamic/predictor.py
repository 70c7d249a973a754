"""The predictor: which patches will what the head reads attend to, from the patch alone.

The paper trains a small network per block towards its path score. Here the score is linear in the
standardised token, and solved: per layer a ridge regression from x̂ to the logarithm of the
attention that the tokens which the head reads pay to the patch in all later blocks of the dense
model (mean over heads, summed over blocks). Features and targets are centred per image, since only
the order within an image counts. One pass over unlabelled images, no gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimdeploy.dynamic import LEAST_ATTENTION, PREDICTOR_RIDGE, choosing_layers
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.dynamic.scores import standardised
from slimdeploy.slim.model import attention_map, embed, slim_block


@torch.no_grad()
def fit_predictor(state: Calibration, counts: list[int]) -> list[Tensor | None]:
    """Weights [D] of every layer that chooses patches; None for the others."""
    prefix, width = len(state.geometry.prefix), state.geometry.width
    chooses = choosing_layers(counts, state.tokens, prefix)
    left = torch.zeros(state.depth, width, width, dtype=torch.float64)
    right = torch.zeros(state.depth, width, dtype=torch.float64)
    for images in state.batches():
        for index, (patches, target) in enumerate(_pairs(state, images, prefix)):
            if chooses[index]:
                features = _centred(standardised(patches).double()).flatten(0, 1)
                left[index] += features.T @ features
                right[index] += features.T @ _centred(target[..., None]).flatten()
    return [
        _solve(left[index], right[index]) if chosen else None
        for index, chosen in enumerate(chooses)
    ]


def _pairs(state: Calibration, images: Tensor, prefix: int) -> list[tuple[Tensor, Tensor]]:
    """Per block the patches that enter it, [B, N, D], and log attention paid later, [B, N]."""
    readers = torch.tensor(state.geometry.head_reads)
    inputs, paid = [embed(state.dense, images)], []
    for block in state.dense.blocks:
        paid.append(attention_map(block, inputs[-1], readers).double().mean((1, 2))[:, prefix:])
        inputs.append(slim_block(block, inputs[-1], None))
    later, pairs = torch.zeros_like(paid[0]), []
    for x, own in zip(reversed(inputs[:-1]), reversed(paid), strict=True):
        pairs.append((x[:, prefix:], (later + LEAST_ATTENTION).log()))
        later = later + own
    return pairs[::-1]


def _centred(values: Tensor) -> Tensor:
    """Per image, over its patches."""
    return values - values.mean(1, keepdim=True)


def _solve(left: Tensor, right: Tensor) -> Tensor:
    ridge = PREDICTOR_RIDGE * left.diagonal().mean() * torch.eye(len(left), dtype=left.dtype)
    weight = torch.linalg.solve(left + ridge, right)
    # The scale does not change a choice; unit length keeps low precision from overflowing.
    return (weight / weight.norm().clamp_min(LEAST_ATTENTION)).float()
