"""What a graph merges, as further outputs, and which tokens each of its rows then stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from slimdeploy.errors import InputError
from slimdeploy.graph.dynamic import ChoicePlan, MergeNames, merge_names

Ids = NDArray[np.int64]
Array = NDArray[Any]


def with_merges(slim: onnx.ModelProto) -> tuple[onnx.ModelProto, list[MergeNames | None]]:
    """A copy of `slim` that gives out what it merges too, and the names, block by block.

    Raises:
        InputError: if the model records no merging, or was changed since.
    """
    names = merge_names(slim)
    if names is None:
        raise InputError("records no merging: it was not made with a schedule that merges")
    made = {name for node in slim.graph.node for name in node.output}
    wanted = [name for three in names if three for name in (three.order, three.partner)]
    if lost := [name for name in wanted if name not in made]:
        raise InputError(f"lost the tensor '{lost[0]}' of its merging: it was changed since export")
    copy = onnx.ModelProto()
    copy.CopyFrom(slim)
    for name in wanted:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)
        copy.graph.output.append(value)
    return copy, names


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


def leaders(found: Sequence[Ids | None], plan: ChoicePlan, images: int) -> list[Ids]:
    """Of each block's groups the token that others merged into, [images, counts[l]].

    Args:
        found: as for `groups_of`.
    """
    read = np.broadcast_to(np.asarray(plan.read, np.int64), (images, len(plan.read)))
    groups = groups_of(found, plan, images)
    return [
        each.ids if each.ids.shape[1] == count else read
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

    @property
    def size(self) -> Ids:
        """Tokens that each row is the mean of, [n, k]."""
        count = self.ids.shape[1]
        return np.stack([np.bincount(row, minlength=count) for row in self.of])

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
        sums = np.zeros((*self.ids.shape, dense.shape[-1]), np.float32)
        for image, row in enumerate(self.of):
            np.add.at(sums[image], row, dense[image].astype(np.float32, copy=False))
        result: Array = sums / self.size[..., None].astype(np.float32)
        return result
