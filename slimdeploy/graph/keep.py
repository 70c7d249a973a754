"""What a caller may ask to keep: checked once, before any graph is touched."""

from __future__ import annotations

from collections.abc import Sequence

from slimdeploy.errors import InputError
from slimdeploy.graph.axes import Ids


def checked_keep(keep: Sequence[Sequence[int]], blocks: int, tokens: int) -> list[Ids]:
    """The ids per block, ascending.

    Args:
        keep: for each of `blocks` blocks the global ids that it keeps, out of 0..tokens-1.

    Raises:
        InputError: if a list is missing, empty or not nested, or an id is out of range or twice.
    """
    if len(keep) != blocks:
        raise InputError(f"keep lists {len(keep)} blocks, the graph has {blocks}")
    before: set[int] = set(range(tokens))
    result: list[Ids] = []
    for index, ids in enumerate(keep):
        kept = {int(i) for i in ids}
        if not kept:
            raise InputError(f"keep[{index}]: block {index + 1} keeps no token")
        if len(kept) != len(ids):
            raise InputError(f"keep[{index}]: an id is listed twice")
        if outside := sorted(i for i in kept if not 0 <= i < tokens):
            raise InputError(f"keep[{index}]: id {outside[0]} is not in 0..{tokens - 1}")
        if added := sorted(kept - before):
            raise InputError(
                f"keep[{index}]: id {added[0]} is not among the tokens that block {index} keeps"
            )
        before = kept
        result.append(tuple(sorted(kept)))
    return result
