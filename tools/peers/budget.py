"""Token counts of the peers for a budget of MACs, in slimdeploy's own way of counting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

from slimdeploy.macs import dense_macs, layer_macs
from slimdeploy.schedule import ModelGeometry


def peer_macs(model: ModelGeometry, mlp_counts: Sequence[int]) -> int:
    """MACs of an image when block l attends among what block l - 1 left, and leaves mlp_counts[l].

    As `slimdeploy.macs`: no softmax, no similarity, no merging; the last block's queries and MLP
    are those of the class token.
    """
    dense = dense_macs(model)
    counts = [model.tokens, *mlp_counts[:-1], 1]
    total = dense.embed + dense.head
    for held, left in pairwise(counts[:-1]):
        total += layer_macs(model, held, held).attention + layer_macs(model, left, held).mlp
    return total + layer_macs(model, 1, counts[-2]).total


def evit_for_budget(model: ModelGeometry, mac_reduction: float) -> list[int]:
    """Counts for the largest rate of patches that EViT can keep in its three blocks.

    The paper's places: the 4th, 7th and 10th of 12 blocks, in proportion for other depths.
    """
    places = {model.depth // 4, model.depth // 2, model.depth * 3 // 4}

    def counts(rate: float) -> list[int]:
        held, found = model.tokens, []
        for index in range(model.depth):
            if index in places and (kept := ceil(rate * (held - 1))) + 2 < held:
                held = kept + 2  # the class token, and the one that is fused
            found.append(held)
        return found

    rates = [step / 1000 for step in range(1, 1001)]
    return counts(max(rate for rate in rates if _saved(model, counts(rate)) >= mac_reduction))


def tome_for_budget(model: ModelGeometry, mac_reduction: float) -> list[int]:
    """Counts for the fewest merges, spread evenly over all blocks but the last.

    Where even merging saves too little, the paper's other schedule: fewer from block to block.
    """

    def counts(merges: int, power: int) -> list[int]:
        held, found = model.tokens, []
        for index in range(model.depth - 1):
            left = 1 - (index + 1) / (model.depth - 1)
            wanted = round(merges * (1 - left**power))
            held -= min(wanted - (model.tokens - held), (held - 1) // 2)
            found.append(held)
        return [*found, held]

    tried = (counts(merges, power) for power in (1, 2) for merges in range(model.patches))
    return next(found for found in tried if _saved(model, found) >= mac_reduction)


def _saved(model: ModelGeometry, mlp_counts: Sequence[int]) -> float:
    return 1 - peer_macs(model, mlp_counts) / dense_macs(model).total
