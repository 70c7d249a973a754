"""What the head does with the tokens of the last block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slimdeploy.errors import GraphError
from slimdeploy.graph.axes import Ids
from slimdeploy.graph.tokens.blocks import Block, all_ids
from slimdeploy.graph.tokens.flow import trace
from slimdeploy.graph.work import Work


@dataclass(frozen=True)
class Head:
    """What is read of the last block's tokens.

    Attributes:
        reads: ids that are read one by one.
        pools: ids that are averaged or attended over.
        refusal: why no token can be dropped, naming the node; None if some can.
    """

    reads: Ids
    pools: Ids
    refusal: str | None = None


def read_head(work: Work, blocks: Sequence[Block], tokens: int, prefix: int) -> Head:
    """What the head reads one by one and what it pools over, by dropping it on trial."""
    last = blocks[-1]
    flow = trace(work, blocks, None)
    asked = flow.computed.get((last.stream.name, last.axis), all_ids(tokens))
    reads = asked
    if asked[-1] >= prefix:  # patches are read: each alone, or as many as there are?
        alone = [i for i in asked if i < prefix and _refusal(work, blocks, set(asked) - {i})]
        reads = (*alone, asked[-1])
    refusal = _refusal(work, blocks, set(reads))
    if refusal is not None or reads == asked:
        return Head(asked, (), refusal)
    return Head(reads[:-1], tuple(i for i in asked if i not in reads[:-1]))


def _refusal(work: Work, blocks: Sequence[Block], ids: set[int]) -> str | None:
    """Why the model cannot do with only `ids` in all of its blocks; None if it can."""
    try:
        trace(work, blocks, [tuple(sorted(ids))] * len(blocks), pool_kept=True)
    except GraphError as error:
        return str(error)
    return None
