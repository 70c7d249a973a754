"""Which tokens a file computes for each image, as ids of the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import onnx

from slimdeploy.graph.dynamic import ChoicePlan
from slimdeploy.measure.choices import Array, Ids, chosen_ids, with_choices
from slimdeploy.measure.merges import groups_of, leaders, moved, with_merges


class ImageIds(NamedTuple):
    """What was decided, block by block.

    Attributes:
        kept: ids of the tokens that were chosen, or of those that others merged into,
            [images, counts[l]].
        rows: where tokens merge, the row of every token of the dense model, [images, N].
    """

    kept: list[Ids]
    rows: list[Ids] | None


IdsOf = Callable[[Mapping[str, Array], int], ImageIds]


def with_ids(slim: onnx.ModelProto, plan: ChoicePlan) -> tuple[onnx.ModelProto, IdsOf]:
    """A copy of `slim` that gives out what it decides, and what reads so many images' outputs.

    Raises:
        InputError: if the file does not name what it decides.
    """
    if plan.dynamic.merges:
        probed, merges = with_merges(slim)

        def merged(seen: Mapping[str, Array], images: int) -> ImageIds:
            groups = groups_of(moved(seen, merges, plan), plan, images)
            return ImageIds(leaders(groups, plan), [each.of for each in groups])

        return probed, merged
    probed, choices = with_choices(slim)

    def chosen(seen: Mapping[str, Array], images: int) -> ImageIds:
        rows = [None if name is None else seen[name] for name in choices]
        return ImageIds(chosen_ids(rows, plan.counts, plan.tokens, plan.read, images), None)

    return probed, chosen
