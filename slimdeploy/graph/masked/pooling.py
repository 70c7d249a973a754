"""Let a head pool over some tokens only: a mean over them, or attention with a learned query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slimdeploy.errors import GraphError
from slimdeploy.graph.masked.scores import Editor
from slimdeploy.graph.probes import Probe, element_type
from slimdeploy.graph.work import Node, Tensor, Work, node_error, producer


def pool_over(editor: Editor, work: Work, last: Probe, ids: Sequence[int]) -> None:
    """Let every node of the head that pools over tokens pool over `ids` only.

    Known are ReduceMean over the token axis, of all tokens or of those behind the prefix, and
    Softmax or Attention whose keys are either.

    Args:
        editor: of the model.
        work: the model as prepared, for shapes and constants; it is left as it is.
        last: the probe of the last block.
        ids: the tokens that the last block keeps.

    Raises:
        GraphError: if the head pools in another way.
    """
    pools = 0
    behind = _behind(work, last.attention)
    for node in behind:
        if node.op == "ReduceMean" and _reduces(work, node, last):
            _weigh(editor, work, node, last, ids)
            pools += 1
        elif node.op in ("Softmax", "Attention") and (held := _keys(work, behind, node, last)):
            visible = [held.index(i) for i in ids if i in held]
            if not visible:
                raise node_error(node, "pools over none of the tokens that the last block keeps")
            editor.hide_keys(node.outputs[0].name, visible, *_scores(work, node))
            pools += 1
    if not pools:
        raise GraphError(
            "the head pools over tokens in no way known here (ReduceMean, or attention whose keys "
            "are all tokens or those behind the prefix); keep all tokens in the last block"
        )


def _behind(work: Work, stream: str) -> list[Node]:
    """The nodes that depend on `stream`."""
    reached, found = {stream}, []
    for node in work.graph.nodes:
        if any(tensor.name in reached for tensor in node.inputs):
            reached.update(tensor.name for tensor in node.outputs)
            found.append(node)
    return found


def _reduces(work: Work, node: Node, last: Probe) -> bool:
    """Whether `node` reduces the token axis alone; LayerNorm's own means reduce another."""
    rank = len(work.facts.shape(node.inputs[0].name))
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        axes = work.facts.values.get(node.inputs[1].name)
    return axes is not None and [int(axis) % rank for axis in axes] == [last.axis]


def _tokens_of(work: Work, node: Node, last: Probe) -> range:
    """The ids along the axis that `node` reduces: all, or those behind the prefix."""
    count = work.facts.shape(node.inputs[0].name)[last.axis]
    start = last.keys - count
    if start and start not in _slice_starts(work, node.inputs[0]):
        raise node_error(node, f"which {count} of {last.keys} tokens it pools cannot be told")
    return range(start, last.keys)


def _keys(work: Work, behind: Sequence[Node], node: Node, last: Probe) -> range:
    """The ids of the tokens that are the keys of `node`; none if its keys are no tokens."""
    count = _scores(work, node)[1]
    start = last.keys - count
    if not start:
        return range(count)
    for other in behind if 0 < start < last.keys else ():
        shape = work.facts.shapes.get(other.outputs[0].name, ())
        sliced = other.op == "Slice" and len(shape) > last.axis and shape[last.axis] == count
        if sliced and start in work.facts.values[other.inputs[1].name]:
            return range(start, last.keys)
    return range(0)


def _slice_starts(work: Work, tensor: Tensor) -> list[int]:
    """The starts of the Slices that `tensor` went through on the way from its last sum."""
    starts: list[int] = []
    while (node := producer(tensor)) is not None and node.op != "Add":
        if node.op == "Slice":
            starts += [int(start) for start in work.facts.values[node.inputs[1].name]]
        tensor = node.inputs[0]
    return starts


def _weigh(editor: Editor, work: Work, node: Node, last: Probe, ids: Sequence[int]) -> None:
    """Scale what ReduceMean reads so that it sums `ids` only, each by 1 over their number."""
    held = _tokens_of(work, node, last)
    kept = np.isin(np.asarray(held), ids)
    if not kept.any():
        raise node_error(node, "pools over none of the tokens that the last block keeps")
    weights = np.where(kept, len(held) / kept.sum(), 0.0)
    behind = len(work.facts.shape(node.inputs[0].name)) - last.axis - 1
    pool = editor.producer(node.outputs[0].name)
    kind = element_type(editor.types, pool.output[0])
    column = editor.constant("pooled", weights.reshape(-1, *[1] * behind), kind)
    pool.input[0] = editor.insert(pool, "Mul", [pool.input[0], column])


def _scores(work: Work, node: Node) -> tuple[int, int]:
    """How many queries meet how many keys."""
    if node.op == "Softmax":
        shape = work.facts.shape(node.outputs[0].name)
        return (shape[-2] if len(shape) > 1 else 1), shape[-1]
    query, key = (work.facts.shape(tensor.name) for tensor in node.inputs[:2])
    return query[-2], key[-2]
