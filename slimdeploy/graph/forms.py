"""Which passes the options on selection and on the graph's outer shape ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from slimdeploy.graph.anatomy.prefix import stream_after
from slimdeploy.graph.axes import Ids
from slimdeploy.graph.options import GraphOptions
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.passes.end_at import EndAt
from slimdeploy.graph.passes.fix_batch import FixBatch
from slimdeploy.graph.passes.input_layout import ChannelsLast
from slimdeploy.graph.passes.permute_tokens import PermuteTokens
from slimdeploy.graph.passes.select_tokens import SelectTokens
from slimdeploy.graph.passes.split_projections import SplitProjections
from slimdeploy.graph.passes.static_picks import StaticPicks
from slimdeploy.graph.selection.emit import is_identity
from slimdeploy.graph.tokens.blocks import Block, all_ids
from slimdeploy.graph.tokens.keep import lifetime_order
from slimdeploy.graph.work import Work


class Selection(NamedTuple):
    """The passes that select tokens, and how the tokens are ordered then (`keep.ORDER_KEY`)."""

    passes: list[Pass]
    order: str


def input_passes(options: GraphOptions) -> list[Pass]:
    """What changes the graph's inputs; to run before shapes are folded."""
    fix: list[Pass] = [] if options.fixed_batch is None else [FixBatch(options.fixed_batch)]
    return [*fix, ChannelsLast()] if options.input_layout == "nhwc" else fix


def selection(
    work: Work, blocks: Sequence[Block], keep: Sequence[Ids] | None, options: GraphOptions
) -> Selection:
    """Select `keep` (None: only what the head reads), written as `options.select` says."""
    order = _order(blocks, keep, options)
    permuted: list[Pass] = []
    if not is_identity(order, len(order)):
        permuted = [PermuteTokens(order, "one-hot" if "Gather" in options.forbid_ops else "gather")]
        keep = None if keep is None else [all_ids(len(ids)) for ids in keep]
    pool = options.pool_kept
    passes = [
        *permuted,
        SplitProjections(keep, pool_kept=pool),
        SelectTokens(keep, options.select, pool_kept=pool),
        *_rest(work, blocks, options),
    ]
    return Selection(passes, "lifetime" if permuted else "position")


def no_selection(work: Work, blocks: Sequence[Block], options: GraphOptions) -> list[Pass]:
    """The same for a graph of which every token stays."""
    return _rest(work, blocks, options)


def _rest(work: Work, blocks: Sequence[Block], options: GraphOptions) -> list[Pass]:
    # After the selections: a token picked by a product is one that no selection can move past.
    picks = StaticPicks(options.select, slices="Slice" not in options.forbid_ops)
    if options.prefix_blocks is None:
        return [picks]
    return [EndAt(stream_after(work, blocks, options.prefix_blocks).name), picks]


def _order(blocks: Sequence[Block], keep: Sequence[Ids] | None, options: GraphOptions) -> Ids:
    """The order in which every block keeps a prefix; that of the ids where none is asked for.

    Without a schedule only the last block selects, and what a head reads is a prefix as a rule.
    """
    tokens = blocks[0].keys
    if options.select != "slice" or keep is None:
        return all_ids(tokens)
    return lifetime_order(keep, tokens)
