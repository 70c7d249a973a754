"""Which passes make a graph decide by image, and what it records of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import onnx

from slimdeploy.errors import InputError
from slimdeploy.graph.dynamic.choose_tokens import ChooseTokens
from slimdeploy.graph.dynamic.merge_tokens import MergeTokens
from slimdeploy.graph.dynamic.plan import ChoicePlan, record_choices, record_merges
from slimdeploy.graph.forms import no_selection
from slimdeploy.graph.options import GraphOptions
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.passes.split_projections import SplitProjections
from slimdeploy.graph.tokens.blocks import Block, all_ids
from slimdeploy.graph.work import Work


class Decisions(NamedTuple):
    """The passes, and what writes the names of what was decided into the finished model.

    `record(model, blocks)` is called once they have run; of the first `blocks` only, if given.
    """

    passes: list[Pass]
    record: Callable[[onnx.ModelProto, int | None], None]


def dynamic_selection(
    work: Work, blocks: Sequence[Block], plan: ChoicePlan, options: GraphOptions
) -> Decisions:
    """The passes that make a graph choose or merge as `plan` says.

    Raises:
        InputError: for a form of selection that cannot be chosen at run time.
    """
    if options.select != "gather":
        raise InputError(
            f"--select {options.select}: is for positions known beforehand, a dynamic schedule "
            "chooses them at run time; leave --select out, or make a static schedule"
        )
    rest = no_selection(work, blocks, options)
    if plan.dynamic.merges:
        # Queries and keys differ in number only where all patches are left out.
        whole = [all_ids(plan.tokens) if n > plan.prefix else plan.read for n in plan.counts]
        merge = MergeTokens(plan)
        return Decisions(
            [SplitProjections(whole), merge, *rest],
            lambda model, count: record_merges(model, merge.names[:count]),
        )
    choose = ChooseTokens(plan)
    return Decisions(
        [SplitProjections(plan.places), choose, *rest],
        lambda model, count: record_choices(model, choose.chosen[:count]),
    )
