"""What a graph merges, as further outputs, and which tokens each of its rows then stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from slimdeploy.errors import GateError, InputError
from slimdeploy.graph.dynamic import ChoicePlan, MergeNames, merge_names
from slimdeploy.measure.choices import Array, Ids, giving, standardised


def with_merges(slim: onnx.ModelProto) -> tuple[onnx.ModelProto, list[MergeNames | None]]:
    """A copy of `slim` that gives out what it merges too, and the names, block by block.

    Raises:
        InputError: if the model records no merging, or was changed since.
    """
    names = merge_names(slim)
    if names is None:
        raise InputError("records no merging: it was not made with a schedule that merges")
    wanted = [name for three in names if three for name in (three.order, three.partner)]
    return giving(slim, wanted, "merging"), names


def moves(order: Ids, partner: Ids, held: int, prefix: int) -> Ids:
    """Where each of `held` rows goes, [n, held], from what a graph gives of one merging.

    Args:
        order: rows among the first patches of pairs, the most similar ahead, [n, ⌈p/2⌉].
        partner: of those that merge the row among the second patches, [n, gone].
    """
    images, first = order.shape
    gone = partner.shape[1]
    behind = prefix + first - gone
    to = np.tile(np.arange(held), (images, 1))
    second = prefix + 1 + 2 * np.arange((held - prefix) // 2)
    to[:, second] = behind + np.arange(len(second))
    rows = np.arange(images)[:, None]
    to[rows, prefix + 2 * order[:, gone:]] = np.arange(prefix, behind)
    to[rows, prefix + 2 * order[:, :gone]] = behind + partner
    return to


def moved(
    seen: Mapping[str, Array], names: Sequence[MergeNames | None], plan: ChoicePlan
) -> list[Ids | None]:
    """Per block where its rows go, [n, held]; None where none merge.

    Args:
        seen: what the graph of `with_merges` gave.
    """
    held = [plan.tokens, *plan.counts]
    return [
        three and moves(seen[three.order], seen[three.partner], held[index], plan.prefix)
        for index, three in enumerate(names)
    ]


def groups_of(found: Sequence[Ids | None], plan: ChoicePlan, images: int) -> list[Groups]:
    """What the rows of each block stand for; `found` says where they go, as `moved` gives it.

    Blocks that leave patches out keep the groups that they attend to.
    """
    groups = [Groups.single(images, plan.tokens)]
    for to, count in zip(found, plan.counts, strict=False):
        groups.append(groups[-1] if to is None else groups[-1].merged(to, count, plan.prefix))
    return groups[1:]


def leaders(groups: Sequence[Groups], plan: ChoicePlan) -> list[Ids]:
    """Of each block's groups the token that others merged into, [images, counts[l]].

    Args:
        groups: as `groups_of` gives them.
    """
    read = np.asarray(plan.read, np.int64)
    return [
        each.ids
        if each.ids.shape[1] == count
        else np.broadcast_to(read, (len(each.ids), len(read)))
        for each, count in zip(groups, plan.counts, strict=False)
    ]


@dataclass(frozen=True)
class Groups:
    """Which tokens of the dense model each row stands for, image by image.

    Attributes:
        of: the row of every token, [n, N].
        ids: of each row the token that others merged into, [n, k].
    """

    of: Ids
    ids: Ids

    @classmethod
    def single(cls, images: int, tokens: int) -> Groups:
        """Every token for itself."""
        each = np.tile(np.arange(tokens), (images, 1))
        return cls(each, each)

    def only(self, images: slice) -> Groups:
        """Those of some images."""
        return Groups(self.of[images], self.ids[images])

    def merged(self, to: Ids, count: int, prefix: int) -> Groups:
        """The groups after row i has moved to row `to[:, i]`, of `count` rows."""
        held, lead = to.shape[1], np.zeros((len(to), count), np.int64)
        first = np.arange(prefix, held, 2)  # written before those they merge into
        for rows in (np.arange(prefix), first, np.arange(prefix + 1, held, 2)):
            np.put_along_axis(lead, to[:, rows], np.broadcast_to(rows, to[:, rows].shape), axis=1)
        of = np.take_along_axis(to, self.of, axis=1)
        return Groups(of, np.take_along_axis(self.ids, lead, axis=1))

    def means(self, dense: Array) -> Array:
        """The mean of each group over tokens of the dense model, [n, k, D] from [n, N, D]."""
        rows = np.arange(self.ids.shape[1])[:, None]
        joins = (self.of[:, None, :] == rows).astype(np.float32)  # [n, k, N]
        sums = joins @ dense.astype(np.float32, copy=False)
        means: Array = sums / joins.sum(-1, keepdims=True)
        return means


def shortfall(tokens: Array, to: Ids, count: int, prefix: int) -> float:
    """By how much the merged pairs miss the most similar ones, in deviations of the similarities.

    Args:
        tokens: rows that enter a block, [k, D].
        to: where each row goes, [k].
        count: rows that are left.

    Raises:
        GateError: if others are left.
    """
    patches = standardised(tokens[prefix:].astype(np.float64))
    similar = patches[::2] @ patches[1::2].T
    first, second = to[prefix::2], to[prefix + 1 :: 2]
    moving = first >= second.min()
    if moving.sum() != len(to) - count or len(np.unique(to)) != count:
        raise GateError(f"a merging leaves {len(np.unique(to))} rows, not {count}")
    best = similar.max(1)
    own = similar[moving, first[moving] - second.min()]
    over = (best[moving] - own).max()
    if not moving.all():
        over = max(over, best[~moving].max() - best[moving].min())
    return float(over / max(similar.std(), 1e-30))
