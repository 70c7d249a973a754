"""Judge a runtime's choices by torch: were they the best, and what follows from them?

Two scores that are almost equal may fall in another order in another runtime, and then all that
follows differs. So a runtime's choices are taken as they are: torch says by how much they miss its
own best ones, and what the model gives for just these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slimdeploy.measure.merges import shortfall
from slimdeploy.slim.dynamic.merging import Groups, MergeVit
from slimdeploy.slim.dynamic.model import DynamicVit
from slimdeploy.slim.dynamic.scores import patch_scores
from slimdeploy.slim.model import embed, slim_block


@torch.no_grad()
def replay(slim: DynamicVit, images: Tensor, rows: Sequence[Tensor | None]) -> tuple[Tensor, float]:
    """Logits [B, classes] with the given rows in place of the model's own, and their shortfall.

    Args:
        rows: per block what a runtime chose among the tokens it was given, [B, counts[l]]; None
            where there is no choice.

    Returns:
        The logits, and by how much the best patch that was left out scores above the worst that was
        taken, at most, in standard deviations of the scores; 0 or less if all choices were best.
    """
    x, shortfall, prefix = embed(slim.dense, images), -torch.inf, slim.dense.num_prefix_tokens
    for index, block in enumerate(slim.dense.blocks):
        chosen = rows[index]
        if chosen is not None:
            weight = getattr(slim, f"scorer{index}", None)
            scores = patch_scores(slim.scorer, block, x, prefix, weight)
            shortfall = max(shortfall, _shortfall(scores, chosen, prefix))
        x = slim_block(block, x, slim.rows(index, x) if chosen is None else chosen)
    logits: Tensor = slim.forward_head(slim.dense.norm(x))
    return logits, float(shortfall)


@torch.no_grad()
def replay_merges(
    slim: MergeVit, images: Tensor, moves: Sequence[Tensor | None]
) -> tuple[Tensor, float]:
    """Logits [B, classes] with the given merges in place of the model's own, and their shortfall.

    Args:
        moves: per block where a runtime sent each row it was given, [B, k]; None where none merge.

    Returns:
        The logits, and by how much merged pairs are less similar than the most similar ones, at
        most, in standard deviations of the similarities; 0 or less if they are those.

    Raises:
        GateError: if a merging leaves other numbers of rows.
    """
    x, worst, prefix = embed(slim.dense, images), -torch.inf, slim.dense.num_prefix_tokens
    groups = Groups.single(x)
    for index, to in enumerate(moves):
        if to is not None:
            pairs, count = zip(x.numpy(), to.numpy(), strict=True), slim.counts[index]
            worst = max(worst, *(shortfall(rows, each, count, prefix) for rows, each in pairs))
        x, groups = slim.step(index, x, groups, to)
    logits: Tensor = slim.forward_head(slim.dense.norm(x))
    return logits, worst


def _shortfall(scores: Tensor, rows: Tensor, prefix: int) -> float:
    held = prefix + scores.shape[1]
    taken = torch.zeros(len(scores), held, dtype=torch.bool).scatter(1, rows, True)
    if not bool(taken[:, :prefix].all()) or bool((taken.sum(1) != rows.shape[1]).any()):
        return torch.inf  # a prefix token is missing, or a token is there twice
    patches = taken[:, prefix:]
    worst_taken = scores.masked_fill(~patches, torch.inf).amin(1)
    best_left = scores.masked_fill(patches, -torch.inf).amax(1)
    return float(((best_left - worst_taken) / scores.std(1).clamp_min(1e-30)).max())
