"""The PyTorch path's cover score is that of the path without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.impact.cover import CoverImpact, received_squares, token_gram
from slimdeploy.slim.model import attention_map
from slimdeploy.slim.timm_models import describe


def test_gram_matrix_and_weights_as_defined(make_vit: Callable[..., Any]) -> None:
    model = make_vit()
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    state = Calibration(model, describe(model, "small"), images, batch_size=2)
    state.keep = {4: [0], 3: [0, 1, 5, 9]}
    x = torch.cat([after for (after,) in state.streams(2)]).double().numpy()
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    x -= x.mean(0)
    wanted = np.einsum("bnd,bmd->nm", x, x) / 5
    np.testing.assert_allclose(token_gram(state, 2), wanted, rtol=1e-4, atol=1e-4)
    maps = torch.cat([attention_map(model.blocks[2], s, None) for (s,) in state.streams(2)])
    weights = maps[:, :, [0, 1, 5, 9]].double().square().mean((0, 1, 2))
    np.testing.assert_allclose(received_squares(state, 2), weights.detach(), rtol=1e-4)
    ranks = CoverImpact().scores(state, 2)
    assert sorted(ranks.tolist()) == list(range(1, state.tokens + 1))
    assert ranks.topk(4).indices.tolist() == [0, 1, 5, 9]
