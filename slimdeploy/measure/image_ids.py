"""Which tokens a file computes for each image, as ids of the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from slimdeploy.graph.dynamic import ChoicePlan
from slimdeploy.measure.choices import Array, Ids, chosen_ids, with_choices
from slimdeploy.measure.merges import groups_of, leaders, moved, with_merges

IdsOf = Callable[[Mapping[str, Array], int], list[Ids]]
RowsOf = Callable[[Mapping[str, Array], int], list[Ids] | None]


def with_ids(slim: onnx.ModelProto, plan: ChoicePlan) -> tuple[onnx.ModelProto, IdsOf]:
    """A copy of `slim` that gives out what it decides, and what makes ids of its outputs.

    The ids of each block are those of the tokens that it chooses, or of those that others merged
    into, [images, counts[l]]; `ids_of(outputs, images)` gives them.

    Raises:
        InputError: if the file does not name what it decides.
    """
    if plan.dynamic.merges:
        probed, merges = with_merges(slim)
        return probed, lambda seen, images: leaders(moved(seen, merges, plan), plan, images)
    probed, choices = with_choices(slim)

    def ids_of(seen: Mapping[str, Array], images: int) -> list[Ids]:
        rows = [None if name is None else seen[name] for name in choices]
        return chosen_ids(rows, plan.counts, plan.tokens, plan.read, images)

    return probed, ids_of


def rows_of(slim: onnx.ModelProto, plan: ChoicePlan) -> RowsOf:
    """What makes of the outputs of `with_ids` the row of every dense token, [images, N] a block.

    Tokens of one row are merged there. None where each image chooses: then rows are single tokens.
    """
    if not plan.dynamic.merges:
        return lambda seen, images: None
    _, merges = with_merges(slim)
    return lambda seen, images: [
        groups.of for groups in groups_of(moved(seen, merges, plan), plan, images)
    ]
