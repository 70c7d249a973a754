"""What must hold of a slimmed graph, checked on the finished model alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import onnx

from slimdeploy.errors import GraphError, one_line
from slimdeploy.graph.files.structure import structure
from slimdeploy.graph.passes.unflatten_tokens import unflatten
from slimdeploy.graph.selection.recognise import whole_selection
from slimdeploy.graph.tokens.blocks import find_blocks
from slimdeploy.graph.work import Work, node_error

_NAMES = (
    "TopK Scatter ScatterElements ScatterND GatherElements GatherND If Loop NonZero Compress "
    "Unique NonMaxSuppression"
)
DYNAMIC_OPS = frozenset(_NAMES.split())
"""Operators that choose at run time; a static schedule adds none of them."""


class BlockCount(NamedTuple):
    """How many tokens one block computes queries for, and how many keys they meet."""

    queries: int
    keys: int


def check_graph(
    model: onnx.ModelProto,
    counts: Sequence[tuple[int, int]] | None = None,
    dense: onnx.ModelProto | None = None,
    added: Counter[str] | None = None,
) -> list[BlockCount]:
    """Check a slimmed `model` and return the token counts of its blocks.

    Args:
        counts: (queries, keys) that each block must have; None accepts any.
        dense: the model it was made from; operators that choose at run time must not have become
            more. Without it there must be none.
        added: how many of these operators there may be more, as a dynamic schedule wants them
            (`ChoicePlan.operators`).

    Raises:
        GraphError: if onnx finds the model invalid, a count differs, an operator that chooses at
            run time was added, or a selection selects everything.
    """
    try:
        onnx.checker.check_model(structure(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"onnx refuses the graph: {one_line(error)}") from error
    _check_operators(model, dense, added or Counter())
    work = Work.of(model)
    _check_selections(work, dense)
    unflatten(work)
    found = [BlockCount(block.queries, block.keys) for block in find_blocks(work)[0]]
    for number, (have, want) in enumerate(zip(found, counts or found, strict=False), 1):
        if have != tuple(want):
            raise GraphError(
                f"block {number} computes {have.queries} queries for {have.keys} keys, "
                f"the schedule says {want[0]} for {want[1]}"
            )
    if counts is not None and len(found) != len(counts):
        raise GraphError(f"the graph has {len(found)} blocks, the schedule {len(counts)}")
    return found


def _check_operators(
    model: onnx.ModelProto, dense: onnx.ModelProto | None, added: Counter[str]
) -> None:
    have = Counter(node.op_type for node in model.graph.node)
    allowed = Counter(node.op_type for node in dense.graph.node) if dense else Counter[str]()
    allowed.update(added)
    for op in sorted(DYNAMIC_OPS):
        if have[op] > allowed[op]:
            raise GraphError(f"{have[op] - allowed[op]} {op} nodes were added")


def _check_selections(work: Work, dense: onnx.ModelProto | None) -> None:
    known = {name for node in dense.graph.node for name in node.output} if dense else set[str]()
    known |= {tensor.name for tensor in dense.graph.initializer} if dense else set[str]()
    for node in work.graph.nodes:
        if (count := whole_selection(work, node, known)) is not None:
            raise node_error(node, f"selects all of the {count} positions")
