"""Leave the splitting of heads to the Attention operator."""

from __future__ import annotations

from slimdeploy.graph.optimize.base import Optimization
from slimdeploy.graph.optimize.patterns import bypass, made_by, only_reader
from slimdeploy.graph.work import Node, Tensor, Work

_BY_HEAD = [0, 2, 1, 3]


class MergedHeads(Optimization):
    """Give Attention its operands as [B, N, H·d], where it was given [B, H, N, d].

    The operator has both forms; with the first it needs none of the Reshapes and Transposes that
    split the heads of Q, K and V and join those of the result.

    Example:
        before: q = Transpose(Reshape(x, [0, 0, 3, 64])); k = ...; v = ...
                a = Attention(q, k, v); y = Reshape(Transpose(a), [0, 0, 192])
        after:  y = Attention<q_num_heads=3, kv_num_heads=3>(x, ...)
    """

    def rewrite(self, work: Work) -> None:
        for node in list(work.graph.nodes):
            if node.op == "Attention" and len(node.outputs) == 1:
                _merge(work, node)


def _merge(work: Work, node: Node) -> None:
    operands = [_before_split(work, tensor) for tensor in node.inputs[:3]]
    joined = _joined(work, node)
    if joined is None or any(tensor is None for tensor in operands):
        return
    heads = [work.facts.shape(tensor.name)[1] for tensor in node.inputs[:3]]
    if heads[1] != heads[2]:
        return
    node.inputs = [*operands, *node.inputs[3:]]
    node.attrs |= {"q_num_heads": heads[0], "kv_num_heads": heads[1]}
    bypass(work, joined, node.outputs[0])


def _before_split(work: Work, tensor: Tensor) -> Tensor | None:
    """[B, N, H·d] of which `tensor` is [B, H, N, d]."""
    transpose = made_by(tensor, "Transpose")
    if transpose is None or transpose.attrs.get("perm") != _BY_HEAD:
        return None
    reshape = made_by(transpose.inputs[0], "Reshape")
    if reshape is None:
        return None
    old, new = (work.facts.shapes.get(t.name, ()) for t in (reshape.inputs[0], tensor))
    splits = len(old) == 3 and len(new) == 4 and old == (new[0], new[2], new[1] * new[3])
    return reshape.inputs[0] if splits else None


def _joined(work: Work, node: Node) -> Node | None:
    """The Reshape behind `node` that makes [B, N, H·d] of its [B, H, N, d]."""
    transpose = only_reader(work, node.outputs[0])
    if transpose is None or transpose.attrs.get("perm") != _BY_HEAD:
        return None
    reshape = only_reader(work, transpose.outputs[0])
    if reshape is None or reshape.op != "Reshape":
        return None
    old, new = (work.facts.shapes.get(t.name, ()) for t in (node.outputs[0], reshape.outputs[0]))
    joins = len(old) == 4 and new == (old[0], old[2], old[1] * old[3])
    return reshape if joins else None
