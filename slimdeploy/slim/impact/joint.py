"""A joint second-order criterion: what dropping a *set* of tokens does to the head's input.

Gate token i of layer t as a key of block t+1, as a bias b_i on its attention logits. With deeper
layers slimmed already, the gradient g of a random projection of the head's input by b says, per
image, how the result leans on each token; dropping the set R changes it by about sum_{i in R} g_i.
Over images and projections the squared change is 1ᵀ M_RR 1 with M = E[g gᵀ]: off-diagonal terms
see redundancy (two tokens that say the same with opposite sign cancel, with equal sign add up),
which no score per token can. Tokens are eliminated greedily, the cheapest next one first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.model import attention_half, mlp_half, slim_block


class JointImpact:
    """Greedy elimination by the Gram matrix of per-image key sensitivities.

    Args:
        projections: random directions of the head's input per image.
        seed: of the directions.
    """

    def __init__(self, projections: int = 4, seed: int = 0) -> None:
        self.projections, self.seed = projections, seed

    def scores(self, state: Calibration, layer: int) -> Tensor:
        gram = torch.zeros(state.tokens, state.tokens, dtype=torch.float64)
        generator = torch.Generator().manual_seed(self.seed)
        for (after,) in state.streams(layer):
            gram += self._sensitivity_gram(state, after, layer, generator)
        kept = {*state.keep[layer + 1], *state.protected}
        return elimination_ranks(gram / len(state.images), kept)

    def _sensitivity_gram(
        self, state: Calibration, x: Tensor, layer: int, generator: torch.Generator
    ) -> Tensor:
        bias = torch.zeros(len(x), state.tokens, requires_grad=True)
        read = self._head_input(state, x, bias, layer)
        gram = torch.zeros(state.tokens, state.tokens, dtype=torch.float64)
        for index in range(self.projections):
            directions = torch.randn(read.shape, generator=generator)
            last = index == self.projections - 1
            (g,) = torch.autograd.grad((read * directions).sum(), bias, retain_graph=not last)
            gram += g.double().T @ g.double()
        return gram / self.projections

    def _head_input(self, state: Calibration, x: Tensor, bias: Tensor, layer: int) -> Tensor:
        """What the head reads, [B, reads, D], as a function of the gates of layer + 1's keys."""
        with torch.enable_grad():
            block = state.slim.blocks[layer]
            y = mlp_half(block, attention_half(block, x, state.rows(layer + 1), bias))
            for later in range(layer + 2, state.depth + 1):
                y = slim_block(state.slim.blocks[later - 1], y, state.rows(later))
            read: Tensor = state.slim.norm(y)
        return read


def elimination_ranks(gram: Tensor, kept: set[int]) -> Tensor:
    """Order of greedy elimination as scores, [N]: first eliminated 0, tokens in `kept` never.

    The next token to go is the one that adds least to 1ᵀ M_RR 1, which for token i is
    M_ii + 2 sum_{j in R} M_ij.
    """
    cost, diagonal = torch.zeros(len(gram), dtype=gram.dtype), gram.diagonal()
    ranks = torch.full((len(gram),), float(len(gram)), dtype=torch.float64)
    gone = torch.tensor([index in kept for index in range(len(gram))])
    for rank in range(len(gram) - len(kept)):
        index = int((diagonal + 2 * cost).masked_fill(gone, torch.inf).argmin())
        ranks[index], gone[index] = rank, True
        cost += gram[:, index]
    return ranks
