"""What the rows of a slim block stand for, among the tokens of the dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimdeploy.forward.cut import Cutter
from slimdeploy.forward.running import Feed, open_part
from slimdeploy.graph.dynamic import ChoicePlan, choice_names, merge_names
from slimdeploy.measure.choices import all_ids, ids_left
from slimdeploy.measure.merges import Groups, moves
from slimdeploy.store import Array

Ids = Sequence[int] | NDArray[np.int64]
"""Of the tokens that a block keeps: the same for all images, [k], or each image's own, [n, k]."""


@dataclass(frozen=True)
class Kept:
    """Tokens that a block keeps, by their ids, or groups of which it keeps the means."""

    ids: Ids
    groups: Groups | None = None

    def wanted(self, target: Array, rows: slice) -> Array:
        """What the block is to give for the images `rows`, [b, k, D], of the dense [n, N, D]."""
        if self.groups is not None:
            return self.groups.only(rows).means(target[rows])
        ids = np.asarray(self.ids)
        each = np.broadcast_to(ids, (len(target), ids.shape[-1]))[rows]
        found: Array = target[np.arange(rows.start, rows.stop)[:, None], each]
        return found.astype(np.float32)


class Choices:
    """What each image keeps, block after block, as a dynamic slim graph chooses it."""

    beside: Mapping[str, Array] = {}

    def __init__(self, slim: Cutter, plan: ChoicePlan, feed: Feed) -> None:
        self.slim, self.plan, self.feed = slim, plan, feed
        self.names = choice_names(slim.model) or []
        self.held = all_ids(plan.tokens, len(feed.images))

    def of(self, block: int, known: dict[str, Array]) -> Kept:
        """What block `block` (from 1) keeps; to be asked for every block in order.

        Args:
            known: what enters the block, by name; nothing runs from the images.
        """
        name, rows = self.names[block - 1], None
        if name is not None:
            rows = _outputs(self.slim, self.feed, known, [name])[name]
        self.held = ids_left(self.held, rows, self.plan.counts[block - 1], self.plan.read)
        return Kept(self.held)

    def changes_keys(self, block: int) -> bool:
        """Whether the block computes other keys than all that enter it."""
        return False


class Merges:
    """What each image merges, block after block, as a slim graph does it.

    Attributes:
        beside: what blocks read beside the stream: how many patches its rows stand for, by name.
    """

    def __init__(self, slim: Cutter, plan: ChoicePlan, feed: Feed) -> None:
        self.slim, self.plan, self.feed = slim, plan, feed
        self.names = merge_names(slim.model) or []
        self.groups = Groups.single(len(feed.images), plan.tokens)
        self.beside: dict[str, Array] = {}
        self._last: dict[str, Array] = {}

    def of(self, block: int, known: dict[str, Array]) -> Kept:
        """What block `block` (from 1) computes; to be asked for every block in order.

        Args:
            known: what enters the block, by name; nothing runs from the images.
        """
        index, plan, names = block - 1, self.plan, self.names[block - 1]
        if names is not None:
            found = _outputs(self.slim, self.feed, {**known, **self._last}, names)
            held = [plan.tokens, *plan.counts][index]
            to = moves(found[names.order], found[names.partner], held, plan.prefix)
            self.groups = self.groups.merged(to, plan.counts[index], plan.prefix)
            # Merging reads the sizes before it, the attention behind it those after it.
            size = {names.size: found[names.size]}
            self.beside, self._last = {**self._last, **size}, size
        else:
            self.beside = self._last
        if plan.counts[index] < self.groups.ids.shape[1]:
            return Kept(plan.read)
        return Kept(self.groups.ids, self.groups)

    def changes_keys(self, block: int) -> bool:
        """Whether the block computes other keys than all that enter it."""
        return self.plan.chooses[block - 1]


def _outputs(
    slim: Cutter, feed: Feed, known: Mapping[str, Array], names: Sequence[str]
) -> dict[str, Array]:
    """Tensors of the slim graph over all images, by name."""
    with open_part(slim.cut([*known], [*names])) as part:
        found = [outputs for _, outputs in feed.run(part, known)]
    return {name: np.concatenate([outputs[name] for outputs in found]) for name in names}
