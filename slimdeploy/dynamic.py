"""The dynamic part of a keep schedule: positions chosen anew for every image, in fixed numbers.

The paper's second model (DPS): block l scores the patches that enter it and computes the best
`counts[l] - prefix` of them; the counts are the schedule's, so every shape stays static. No score
reads the softmax, whose output a fused attention never writes:

`predictor`   w_l · x̂, with x̂ the token standardised over its channels (a LayerNorm without weights)
`key-norm`    ||k||², the patch's key in this block, over all heads
`token-norm`  ||x||², the residual stream's token as it enters the block

A larger score is kept first, of equal ones the patch that comes first. Prefix tokens are not scored
and always stay. A layer that keeps no patch (the last one, of a head that reads single tokens) has
nothing to choose.

`merge` drops no patch: of the `held` patches that enter block l the most similar ones are averaged,
until `counts[l]` tokens are left, and the block computes these alone, as queries and as keys (Bolya
et al., ToMe, ICLR 2023, which merges behind the attention and compares keys). Every second patch,
the first included, looks among the others for the one whose standardised token x̂ is most similar
to its own; the `held - counts[l]` best pairs merge into their mean, weighted by how many patches
each stands for, and the logarithm of that number is added to the attention logits of a key. So a
block computes what the dense one would if each patch were the mean of its group, and nothing is
lost of patches that are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Scorer = Literal["predictor", "key-norm", "token-norm"]
"""What each image's patches are chosen by."""

PerImage = Literal["predictor", "key-norm", "token-norm", "merge"]
"""What each image decides by: a score of what it keeps, or the similarity of what it merges."""

STANDARDISE_EPSILON = 1e-6
"""Added to the variance of a token before its channels are divided by the deviation."""

PREDICTOR_RIDGE = 0.01
"""Strength of the ridge that a predictor is solved with, in mean diagonals of its matrix."""

LEAST_ATTENTION = 1e-12
"""Added to attention before its logarithm is taken: it is positive, but may underflow."""


class Dynamic(BaseModel):
    """How each image's patches are chosen, or merged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scorer: PerImage
    weights: tuple[tuple[FiniteFloat, ...] | None, ...] = Field(
        default=(), description="predictor: w_l per layer, null where nothing is chosen"
    )

    @property
    def merges(self) -> bool:
        """Whether patches are averaged where others would be dropped."""
        return self.scorer == "merge"


def dense_reference(dynamic: Dynamic | None) -> str:
    """What a slim graph is proven against, in words; None for static positions."""
    if dynamic is not None and dynamic.merges:
        return "the dense graph with each group of patches averaged"
    return "the masked dense graph"


def per_image(name: str) -> PerImage | None:
    """The way of that name to decide by image; None for anything else, as a rank of positions."""
    return next((way for way in get_args(PerImage) if way == name), None)


def choosing_layers(counts: Sequence[int], tokens: int, prefix: int) -> list[bool]:
    """Per layer whether it chooses: it keeps fewer tokens than the one before, and patches."""
    before = [tokens, *counts[:-1]]
    return [count < held and count > prefix for count, held in zip(counts, before, strict=True)]


def dynamic_problem(
    dynamic: Dynamic, keep: Sequence[Sequence[int]], tokens: int, prefix: int, width: int
) -> str | None:
    """The first rule that a dynamic schedule breaks, with its field, or None."""
    for index, ids in enumerate(keep):
        if max(ids) >= prefix and not set(range(prefix)) <= set(ids):
            return f"layers[{index}].keep: a dynamic schedule keeps every prefix token with patches"
    counts = [len(ids) for ids in keep]
    if dynamic.merges and (problem := merge_problem(counts, tokens, prefix)):
        return problem
    if dynamic.scorer != "predictor":
        return "dynamic.weights: go with the predictor only" if dynamic.weights else None
    if len(dynamic.weights) != len(keep):
        return f"dynamic.weights: {len(dynamic.weights)} rows for {len(keep)} layers"
    chooses = choosing_layers(counts, tokens, prefix)
    for index, (weights, needed) in enumerate(zip(dynamic.weights, chooses, strict=True)):
        if (weights is not None) != needed:
            return f"dynamic.weights[{index}]: {'missing' if needed else 'this layer chooses none'}"
        if weights is not None and len(weights) != width:
            return f"dynamic.weights[{index}]: {len(weights)} numbers for {width} channels"
    return None


def merge_problem(counts: Sequence[int], tokens: int, prefix: int) -> str | None:
    """The first layer that cannot merge as many patches as its count says, or None."""
    before = [tokens, *counts[:-1]]
    for index, chooses in enumerate(choosing_layers(counts, tokens, prefix)):
        least = before[index] - (before[index] - prefix + 1) // 2
        if chooses and counts[index] < least:
            return (
                f"layers[{index}].keep: leaves {counts[index]} tokens of {before[index]}; a layer "
                f"merges no more than every second patch, and so leaves {least}"
            )
    return None
