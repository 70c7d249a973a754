"""From a dense graph and a schedule to a slim graph that has been checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import onnx

from slimdeploy.errors import GateError, GraphError, InputError
from slimdeploy.graph.dynamic import ChoicePlan, Decisions, dynamic_selection
from slimdeploy.graph.files.structure import add_shapes
from slimdeploy.graph.forbid import check_absent, check_names
from slimdeploy.graph.forms import input_passes, no_selection, selection
from slimdeploy.graph.optimize import optimizations
from slimdeploy.graph.options import GraphOptions
from slimdeploy.graph.passes import (
    CanonicalReshape,
    DropIdleMasks,
    FoldConstants,
    LazyBroadcast,
    Pass,
    Tidy,
    run,
)
from slimdeploy.graph.passes.unflatten_tokens import unflatten
from slimdeploy.graph.postconditions import BlockCount, check_graph
from slimdeploy.graph.tokens.blocks import dense_tokens, find_blocks
from slimdeploy.graph.tokens.flow import trace
from slimdeploy.graph.tokens.keep import checked_keep, record_order
from slimdeploy.graph.work import Work

_OLDEST_OPSET = 13


@dataclass(frozen=True)
class SlimGraph:
    """A slimmed model, the token counts of its blocks as read back from it, and remarks."""

    model: onnx.ModelProto
    blocks: list[BlockCount]
    notes: list[str] = field(default_factory=list)


def slim_graph(
    model: onnx.ModelProto,
    keep: Sequence[Sequence[int]],
    options: GraphOptions | None = None,
    *,
    source: str = "model",
    plan: ChoicePlan | None = None,
) -> SlimGraph:
    """Drop tokens from a dense vision transformer as a schedule says.

    In block l+1 queries, attention output, projection, residual and MLP are computed for the
    tokens `keep[l]`; keys and values come from `keep[l-1]`, for the first block from all tokens.

    Args:
        model: a dense graph whose only dynamic axis is the batch; it is left as it is.
        keep: for each block the global ids of the tokens that it keeps. Ids count from 0, prefix
            tokens (class, distillation, registers) first. Each list is a subset of the one before.
        options: how the graph is written.
        source: what messages call the model, usually its file name.
        plan: choose each image's patches at run time, as many as `keep` lists, whatever its ids.

    Raises:
        GateError: if an operator that `options` forbid is left.
        InputError: if `keep` does not fit the model, or the model's image size is dynamic.
        GraphError: if no blocks are found, a node cannot do with fewer tokens, or the result
            fails a check; the message names the node and the reason.
    """
    with _named(source):
        options = options or GraphOptions()
        work = prepared(model, options)
        blocks, misses = find_blocks(work)
        tokens = dense_tokens(blocks)
        wanted = checked_keep(keep, len(blocks), tokens)
        sizes = [tokens, *map(len, wanted)]
        keys = sizes[:-1] if plan is None else plan.keys
        counts = list(zip(sizes[1:], keys, strict=True))[: options.prefix_blocks]
        if plan is not None:
            by_image = dynamic_selection(work, blocks, plan, options)
            trace(work, blocks, plan.places)
            run([*by_image.passes, *_written(options), Tidy()], work)
            operators = plan.operators
            return _finished(work, model, options, misses, counts, "position", operators, by_image)
        trace(work, blocks, wanted, pool_kept=options.pool_kept)  # refuses before any rewrite
        chosen = selection(work, blocks, wanted, options)
        run([*chosen.passes, *_written(options), Tidy()], work)
        return _finished(work, model, options, misses, counts, chosen.order)


def lossless_graph(
    model: onnx.ModelProto, options: GraphOptions | None = None, *, source: str = "model"
) -> SlimGraph:
    """Compute in the last block only what the head reads; the result is the same up to rounding.

    Args and errors: as `slim_graph`. If the head reads every token there is nothing to save: the
    graph is returned all the same, and a note says so.
    """
    with _named(source):
        options = options or GraphOptions()
        work = prepared(model, options)
        blocks, misses = find_blocks(work)
        chosen = selection(work, blocks, None, options)
        run([*chosen.passes, *_written(options), Tidy()], work)
        result = _finished(work, model, options, misses, order=chosen.order)
        if options.prefix_blocks:
            result.notes.append("nothing to save: only the last block has any, and it is cut off")
        elif [count.queries for count in result.blocks] == [block.queries for block in blocks]:
            whole = blocks[-1].queries == blocks[-1].keys
            reads = f"the head reads all {blocks[-1].queries} tokens of the last block"
            less = "the last block computes no more than the head reads"
            result.notes.append(f"nothing to save: {reads if whole else less}")
        return result


def dense_graph(
    model: onnx.ModelProto, options: GraphOptions | None = None, *, source: str = "model"
) -> SlimGraph:
    """The dense graph written with `options`: what a slim graph is to be compared with.

    Args and errors: as `slim_graph`.
    """
    with _named(source):
        options = options or GraphOptions()
        work = prepared(model, options)
        blocks, misses = find_blocks(work)
        run([*no_selection(work, blocks, options), *_written(options), Tidy()], work)
        return _finished(work, model, options, misses)


def _written(options: GraphOptions) -> list[Pass]:
    """The passes that the options ask for, after the tokens are selected."""
    return optimizations() if options.optimize else []


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Put the name of the file before every message about it."""
    try:
        yield
    except (GateError, GraphError, InputError) as error:
        raise type(error)(f"{source}: {error}") from error


def prepared(model: onnx.ModelProto, options: GraphOptions | None = None) -> Work:
    """A working copy of `model` in canonical form: what every analysis and rewrite starts from.

    Raises:
        InputError: if the opset is too old, or an axis other than the batch is dynamic.
        GraphError: if a node holds a subgraph, or shapes contradict each other.
    """
    options = options or GraphOptions()
    check_names(options.forbid_ops, model)
    opset = next((x.version for x in model.opset_import if x.domain in ("", "ai.onnx")), 0)
    if opset < _OLDEST_OPSET:
        raise InputError(f"opset {opset} is too old: export with opset {_OLDEST_OPSET} or later")
    work = Work.of(model)
    canonical = [FoldConstants(), LazyBroadcast(), DropIdleMasks(), CanonicalReshape()]
    run([*input_passes(options), *canonical], work)
    unflatten(work)
    return work


def _finished(
    work: Work,
    dense: onnx.ModelProto,
    options: GraphOptions,
    misses: list[str],
    counts: Sequence[tuple[int, int]] | None = None,
    order: str | None = None,
    operators: Counter[str] | None = None,
    by_image: Decisions | None = None,
) -> SlimGraph:
    """Check the result.

    Args:
        order: how its tokens are ordered, if some were selected.
        operators: how many of those that choose at run time were added.
        by_image: what was decided per image.
    """
    exported = work.export()
    if order is not None:
        record_order(exported, order)
    if by_image is not None:
        by_image.record(exported, options.prefix_blocks)
    check_absent(options.forbid_ops, exported, dense, options.select)
    found = check_graph(exported, counts, dense, operators)
    if len(found) != (options.prefix_blocks or len(found)):
        raise GraphError(f"{len(found)} blocks are left, --prefix-blocks {options.prefix_blocks}")
    add_shapes(exported)
    return SlimGraph(exported, found, [*misses, *work.notes])
