"""Matrix products and the Attention operator: rows pass, what is summed over does not."""

from __future__ import annotations

from slimdeploy.graph.axes.elementwise import broadcast_links
from slimdeploy.graph.axes.relation import Link, Op, Port, Relation, opaque


def matmul(op: Op) -> Relation:
    """`y[..., m, n] = a[..., m, k] b[..., k, n]`: m, n and the batch axes pass."""
    a, b = op.inputs
    if min(len(a), len(b)) < 2:
        return opaque("one of its operands is a vector")
    y = op.outputs[0]
    last = len(y) - 1
    links = (
        Link(Port(0, last - 1), Port(0, len(a) - 2)),
        Link(Port(0, last), Port(1, len(b) - 1)),
        *broadcast_links((a[:-2], b[:-2]), y[:-2]),
    )
    summed = (Port(0, len(a) - 1), Port(1, len(b) - 2))
    return Relation(links, contracted=(summed,), why="it is summed over")


def gemm(op: Op) -> Relation:
    """`y[m, n] = a[m, k] b[k, n] + c`, either operand perhaps transposed."""
    row = 1 if op.attrs.get("transA") else 0
    column = 0 if op.attrs.get("transB") else 1
    bias = tuple(
        Link(link.output, Port(2, link.input.axis))
        for link in broadcast_links(op.inputs[2:3], op.outputs[0])
    )
    links = (Link(Port(0, 0), Port(0, row)), Link(Port(0, 1), Port(1, column)), *bias)
    summed = (Port(0, 1 - row), Port(1, 1 - column))
    return Relation(links, contracted=(summed,), why="it is summed over")


def attention(op: Op) -> Relation:
    """Attention on Q, K, V of rank 4 (batch, head, token, feature) or 3 (batch, token, feature).

    The queries' axis passes; the keys' axis of K, V and the mask is summed over as one.
    """
    if op.attrs.get("is_causal"):
        return opaque("it is causal: which keys a query sees depends on its position")
    if len(op.outputs) > 1 or any(op.inputs[4:]):
        return opaque("it reads or writes a cache of keys and values")
    query, key, value = op.inputs[:3]
    rows = Port(0, len(query) - 2)
    links = [Link(Port(0, len(op.outputs[0]) - 2), rows), Link(Port(0, 0), Port(0, 0))]
    keys = [Port(1, len(key) - 2), Port(2, len(value) - 2)]
    mask = op.inputs[3] if len(op.inputs) > 3 else ()
    if len(mask) >= 2:
        if mask[-2] == query[-2]:
            links.append(Link(links[0].output, Port(3, len(mask) - 2)))
        if mask[-1] == key[-2]:
            keys.append(Port(3, len(mask) - 1))
    pools = tuple(keys)
    return Relation(tuple(links), contracted=(pools,), pools=pools, why="it is summed over")


RULES = {"MatMul": matmul, "Gemm": gemm, "Attention": attention}
