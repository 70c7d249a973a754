"""Find transformer blocks by structure: attention over tokens whose result joins a residual Add.

Nothing here looks at names. An anchor (a Softmax, or an Attention operator) is followed along the
queries' axis to the first Add whose other operand is computed too, but not from the anchor: that
operand is the residual stream, and the Add's output is where a block's tokens are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slimdeploy.errors import GraphError
from slimdeploy.graph.axes import Ids, Port
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, label, producer


@dataclass(frozen=True)
class Block:
    """The attention half of one transformer block.

    `stream` is the residual stream after attention (the output of `add`), `axis` its token axis.
    `query`, `key`, `value` are the operands of the attention products; `queries` and `keys` count
    the tokens on either side of the scores.
    """

    anchor: Node
    add: Node
    axis: int
    query: Tensor
    key: Tensor
    value: Tensor
    queries: int
    keys: int

    @property
    def stream(self) -> Tensor:
        return self.add.outputs[0]


@dataclass(frozen=True)
class _Attention:
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    row: Port  # the queries' axis of `output`
    queries: int
    keys: int


class NotABlockError(Exception):
    """Why an anchor is not a block: which node, and what it lacks."""


def find_blocks(work: Work) -> tuple[list[Block], list[str]]:
    """The blocks in the order in which they run, and a line for each anchor that is not one.

    Raises:
        GraphError: if there is no block at all; the message says why for the first anchor.
    """
    blocks, misses = [], []
    for node in work.graph.nodes:
        if node.op in ("Softmax", "Attention"):
            try:
                blocks.append(_block(work, node))
            except NotABlockError as reason:
                misses.append(f"{label(node)} is not a block: {reason}")
    if not blocks:
        first = misses[0] if misses else "it has no Softmax and no Attention node"
        raise GraphError(f"no transformer block found: {first}")
    return blocks, misses


def dense_tokens(blocks: Sequence[Block]) -> int:
    """The number of tokens of a dense stream.

    Raises:
        GraphError: if blocks differ in it: then the graph already drops or merges tokens.
    """
    tokens: int = blocks[0].keys
    for number, block in enumerate(blocks, 1):
        if (block.queries, block.keys) != (tokens, tokens):
            raise GraphError(
                f"{label(block.anchor)}: block {number} has {block.queries} queries for "
                f"{block.keys} keys, not {tokens} for each: a schedule applies to a dense graph, "
                "in which all blocks have all tokens; if some were dropped before, begin with the "
                "dense file"
            )
    return tokens


def _block(work: Work, anchor: Node) -> Block:
    found = _softmax(work, anchor) if anchor.op == "Softmax" else _operator(work, anchor)
    add, axis = _residual_add(work, found)
    operands = found.query, found.key, found.value
    return Block(anchor, add, axis, *operands, found.queries, found.keys)


def _operator(work: Work, node: Node) -> _Attention:
    query, key, value = node.inputs[:3]
    shapes = [work.facts.shape(tensor.name) for tensor in (query, key)]
    row = Port(0, len(work.facts.shape(node.outputs[0].name)) - 2)
    if not work.relation(node).of_output(row):
        raise NotABlockError(work.relation(node).why)
    return _Attention(query, key, value, node.outputs[0], row, shapes[0][-2], shapes[1][-2])


def _softmax(work: Work, node: Node) -> _Attention:
    shape = work.facts.shapes.get(node.outputs[0].name)
    if shape is None or len(shape) < 3:
        raise NotABlockError("its input is not a stack of score matrices")
    if int(node.attrs.get("axis", -1)) % len(shape) != len(shape) - 1:
        raise NotABlockError("it does not normalise the last axis")
    scores = _scores_product(work, node, len(shape) - 2)
    weighted = _weighted_sum(work, node, len(shape) - 1)
    rank = len(work.facts.shape(weighted.outputs[0].name))
    query, key = scores.inputs
    return _Attention(
        query, key, weighted.inputs[1], weighted.outputs[0], Port(0, rank - 2), *shape[-2:]
    )


def _scores_product(work: Work, softmax: Node, row: int) -> Node:
    """The product of queries and keys: the last MatMul of computed operands before `softmax`."""
    reached = {softmax.inputs[0].name: row}
    for node in _before(work, softmax):
        axis = reached.get(node.outputs[0].name) if node.outputs else None
        if axis is None:
            continue
        if node.op == "MatMul" and not any(is_constant(tensor) for tensor in node.inputs):
            return node
        for link in work.relation(node).of_output(Port(0, axis)):
            reached[node.inputs[link.input.operand].name] = link.input.axis
    raise NotABlockError("no product of queries and keys leads to it")


def _weighted_sum(work: Work, softmax: Node, column: int) -> Node:
    """The product of attention weights and values: the first MatMul that sums over `column`."""
    reached = {softmax.outputs[0].name: column}
    for node in _after(work, softmax):
        for index, tensor in enumerate(node.inputs):
            if (axis := reached.get(tensor.name)) is None:
                continue
            port = Port(index, axis)
            if node.op == "MatMul" and index == 0 and work.relation(node).group_of(port):
                return node
            for link in work.relation(node).of_input(port):
                reached[node.outputs[link.output.operand].name] = link.output.axis
    raise NotABlockError("no product sums its weights over the keys")


def _residual_add(work: Work, found: _Attention) -> tuple[Node, int]:
    """The first Add of the anchor's result and something computed elsewhere, and the token axis.

    `reached` holds the tensors in which the anchor's queries' axis survives, `tainted` all that
    depend on the anchor: the residual stream is in neither.
    """
    reached = {found.output.name: found.row.axis}
    tainted = {found.output.name}
    obstacle = ""
    for node in _after(work, producer(found.output)):
        names = [tensor.name for tensor in node.inputs]
        if not tainted.intersection(names):
            continue
        tainted.update(tensor.name for tensor in node.outputs)
        passed = _pass(work, node, reached)
        if passed is None:
            touched = any(name in reached for name in names) and node.op != "Shape"
            obstacle = obstacle or (f"; {label(node)}: {work.relation(node).why}" * touched)
        elif node.op == "Add" and _adds_a_stream(work, node, tainted, passed):
            return node, passed
    raise NotABlockError(f"its result never returns to a residual Add{obstacle}")


def _pass(work: Work, node: Node, reached: dict[str, int]) -> int | None:
    """Carry the axis through `node`; the output axis, or None where it does not survive."""
    passed = None
    for index, tensor in enumerate(node.inputs):
        if tensor.name in reached:
            for link in work.relation(node).of_input(Port(index, reached[tensor.name])):
                reached[node.outputs[link.output.operand].name] = passed = link.output.axis
    return passed


def _adds_a_stream(work: Work, node: Node, tainted: set[str], axis: int) -> bool:
    shape = work.facts.shape(node.outputs[0].name)
    others = [t for t in node.inputs if t.name not in tainted and not is_constant(t)]
    return any(work.facts.shapes.get(tensor.name) == shape for tensor in others) and axis > 0


def _after(work: Work, node: Node | None) -> list[Node]:
    nodes = list(work.graph.nodes)
    start = next(i for i, other in enumerate(nodes) if other is node)
    return nodes[start + 1 :]


def _before(work: Work, node: Node) -> list[Node]:
    nodes = list(work.graph.nodes)
    start = next(i for i, other in enumerate(nodes) if other is node)
    return nodes[:start][::-1]


def token_axes(work: Work, blocks: list[Block]) -> dict[str, set[int]]:
    """Every axis that runs over tokens, by tensor name: all that links lead to from the stream."""
    neighbours: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for node in work.graph.nodes:
        relation = work.relation(node)
        pairs = [(_at(node.outputs, x.output), _at(node.inputs, x.input)) for x in relation.links]
        for group in relation.contracted:
            pairs += [(_at(node.inputs, group[0]), _at(node.inputs, port)) for port in group[1:]]
        for a, b in pairs:
            neighbours.setdefault(a, []).append(b)
            neighbours.setdefault(b, []).append(a)
    frontier = [(block.stream.name, block.axis) for block in blocks]
    seen = set(frontier)
    while frontier:
        for other in neighbours.get(frontier.pop(), []):
            if other not in seen:
                seen.add(other)
                frontier.append(other)
    axes: dict[str, set[int]] = {}
    for name, axis in seen:
        axes.setdefault(name, set()).add(axis)
    return axes


def _at(tensors: list[Tensor], port: Port) -> tuple[str, int]:
    return tensors[port.operand].name, port.axis


def all_ids(count: int) -> Ids:
    """Every position of an axis."""
    return tuple(range(count))
