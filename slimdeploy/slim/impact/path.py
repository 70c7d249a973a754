"""The paper's impact score: every attention path from a token to what the last layer keeps.

Eq. 6:  s_{t,i} = sum over head paths of || A_t[:, i] U_t[i, :] ||_F²,
        A_t = prod_{l > t} diag(m_l) P_l,   U_t^h = P_t^h |Z_{t-1}|.

The Frobenius norm of an outer product is the product of the norms, and the norms of A's columns
are the diagonal of AᵀA, which a recursion from the last layer down yields for all head paths at
once: G_L = diag(m_L), G_{l-1} = mean_h P_lᵀ G_l P_l. So s_t = diag(G_t) · mean_h ||U_t^h||². The
mean in place of the sum scales all scores alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.model import attention_map


class PathImpact:
    """Patch Slimming's score (CVPR 2022, Theorem 1), averaged over calibration images."""

    @torch.no_grad()
    def scores(self, state: Calibration, layer: int) -> Tensor:
        total = torch.zeros(state.tokens, dtype=torch.float64)
        for before, after in state.streams(layer - 1, layer):
            reach = path_energy(state, after, layer)
            mixed = (
                attention_map(state.dense.blocks[layer - 1], before, None) @ before.abs()[:, None]
            )
            energy = mixed.double().square().sum(-1).mean(1)
            total += (reach * energy).sum(0)
        return total / len(state.images)


def path_energy(state: Calibration, x: Tensor, layer: int) -> Tensor:
    """diag(G) over the tokens that leave `layer`, [B, N], from Z_layer [B, N, D].

    Only the layers' inputs are held; each attention map is computed, used and dropped on the way
    down, so memory does not grow with depth times N². In float64: products of many small
    probabilities underflow in float32.
    """
    inputs = list(state.suffix(x, layer))
    last = torch.zeros(len(state.keep[state.depth]), dtype=torch.float64) + 1
    energy = torch.diag(last).expand(len(x), -1, -1)
    for later, stream in reversed(inputs):
        maps = attention_map(state.slim.blocks[later - 1], stream, state.rows(later)).double()
        energy = (maps.transpose(-2, -1) @ energy[:, None] @ maps).mean(1)
    return energy.diagonal(dim1=-2, dim2=-1)
