"""What a caller may ask to keep: checked once, before any graph is touched; and token orders."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

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


ORDER_KEY = "slimdeploy.token_order"
"""The metadata of a model that says how its tokens are ordered: `lifetime` or `position`."""


def lifetime_order(keep: Sequence[Sequence[int]], tokens: int) -> Ids:
    """All ids, those that live longest first and equals by id: then every block keeps a prefix.

    Prefix tokens (class, registers) need no place of their own: they come first by id wherever
    they live as long as any patch, and where they do not, putting them first would leave some
    block with something other than a prefix.

    Args:
        keep: for each block the global ids that it keeps, nested, out of 0..tokens-1.

    Example:
        >>> lifetime_order([[0, 2, 3], [0, 3]], 5)
        (0, 3, 2, 1, 4)
    """
    lifetime = [0] * tokens
    for ids in keep:
        for i in ids:
            lifetime[i] += 1
    return tuple(sorted(range(tokens), key=lambda i: (-lifetime[i], i)))


def token_order(model: onnx.ModelProto, keep: Sequence[Sequence[int]], tokens: int) -> Ids:
    """The ids in the order in which `model`, made with `keep`, holds them on entering block 1."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    by_lifetime = metadata.get(ORDER_KEY) == "lifetime"
    return lifetime_order(keep, tokens) if by_lifetime else tuple(range(tokens))


def record_order(model: onnx.ModelProto, order: str) -> None:
    """Write into `model` how its tokens are ordered, in place of what it said before."""
    others = [entry for entry in model.metadata_props if entry.key != ORDER_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    model.metadata_props.add(key=ORDER_KEY, value=order)
