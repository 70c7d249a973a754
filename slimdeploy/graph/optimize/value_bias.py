"""Fold the bias of the values into the output projection."""

from __future__ import annotations

import numpy as np
import onnx

from slimdeploy.graph.evaluate import evaluate
from slimdeploy.graph.files.external import Array
from slimdeploy.graph.optimize.base import Optimization
from slimdeploy.graph.optimize.patterns import bypass, cast_like, only_reader, wide
from slimdeploy.graph.optimize.projection import (
    Projection,
    bias_of,
    computed,
    factor,
    vector_of,
    way_back,
    way_on,
)
from slimdeploy.graph.optimize.scores import weighted_sum
from slimdeploy.graph.tokens.blocks import Block, find_blocks
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, producer

_BATCH = 2
"""Stands for the batch where a bias is sent through layout nodes."""


class FoldValueBias(Optimization):
    """Move a vector that is added to all values behind the attention: its weights sum to 1.

    P(V + 1bᵀ) = PV + 1bᵀ for every softmax P, and the output projection takes b to bW, which
    joins its own bias. Which feature ends up where is found by sending b through the nodes that
    lay out the heads. Whatever stands between softmax and values, such as a Where that empties
    rows, ends the sum of 1: such a block is left alone.

    Example:
        before: w = MatMul(x, Wv); v = Add(w, bv); a = MatMul(p, v); o = MatMul(a, W); y = Add(o, c)
        after:  v = MatMul(x, Wv); a = MatMul(p, v); o = MatMul(a, W); y = Add(o, c + bv W)
    """

    def rewrite(self, work: Work) -> None:
        for block in find_blocks(work)[0]:
            self._fold(work, block)

    def _fold(self, work: Work, block: Block) -> None:
        back, tensor = way_back(work, block.value)
        bias = bias_of(work, tensor)
        if bias is None:
            if (node := producer(tensor)) is not None and node.op != "MatMul":
                self.leave(block.anchor, f"its values come from {node.op}, not from a projection")
            return
        if reason := _renormalised(work, block):
            self.leave(block.anchor, reason)
            return
        product = weighted_sum(work, block)
        assert product is not None  # else it would have been renormalised
        on, merged = way_on(work, product.outputs[0])
        output = _output_projection(work, merged)
        laid_out = all(factor(node) is None for node in back)
        moved = _moved(work, bias, back[::-1], product, on) if output and laid_out else None
        if output is None or moved is None:
            self.leave(block.anchor, "no projection with a bias follows it")
            return
        _add_to_bias(work, output, moved)
        bypass(work, bias, computed(bias))


def _renormalised(work: Work, block: Block) -> str:
    """Why the weights of a query may not sum to 1."""
    if weighted_sum(work, block) is None:
        return "its weights are changed after the softmax"
    mask = block.anchor.inputs[3:4] if block.anchor.op == "Attention" else []
    if mask and mask[0].name and not (is_constant(mask[0]) and _is_finite(mask[0])):
        return "its mask may hide all keys from a query"
    return ""


def _is_finite(mask: Tensor) -> bool:
    return mask.values.dtype != np.bool_ and bool(np.all(np.isfinite(wide(mask))))


def _output_projection(work: Work, tensor: Tensor) -> Projection | None:
    """The projection that reads `tensor`, if it has a bias to add to."""
    product = only_reader(work, tensor)
    if product is None or product.op != "MatMul" or product.inputs[0] is not tensor:
        return None
    add = only_reader(work, product.outputs[0])
    if add is None or add.op != "Add":
        return None
    found = Projection.of(work, add.outputs[0])
    return found if found is not None and found.product is product else None


def _moved(work: Work, bias: Node, back: list[Node], product: Node, on: list[Node]) -> Array | None:
    """The bias as the output projection reads it, [D]; None if it is not alike for all tokens."""
    sent = np.broadcast_to(vector_of(bias), _sizes(work, bias.outputs[0]))
    values = _send(work, sent, back)
    if values is None or not np.array_equal(
        values, values[..., :1, :].repeat(values.shape[-2], -2)
    ):
        return None
    shape = _sizes(work, product.outputs[0])
    if (*shape[:-2], shape[-1]) != (*values.shape[:-2], values.shape[-1]):
        return None  # several heads of queries share one of values
    attended = _send(work, np.broadcast_to(values[..., :1, :], shape), on)
    if attended is None:
        return None
    found = np.reshape(attended, (-1, attended.shape[-1]))
    return None if np.any(found != found[0]) else found[0]


def _sizes(work: Work, tensor: Tensor) -> tuple[int, ...]:
    return tuple(_BATCH * -n if n < 0 else n for n in work.facts.shape(tensor.name))


def _send(work: Work, values: Array, nodes: list[Node]) -> Array | None:
    """Run layout nodes on known numbers."""
    for node in nodes:
        names = [tensor.name for tensor in node.inputs]
        known = {t.name: t.values for t in node.inputs[1:] if is_constant(t)}
        proto = onnx.helper.make_node(node.op, names, [node.outputs[0].name], **node.attrs)
        result = evaluate(proto, {**known, names[0]: values}, {"": work.graph.opset})
        if result is None:
            return None
        values = result[0]
    return values


def _add_to_bias(work: Work, output: Projection, moved: Array) -> None:
    add = output.bias
    assert add is not None
    place = 1 if is_constant(add.inputs[1]) else 0
    old = add.inputs[place]
    more = moved.astype(np.float64) @ wide(output.product.inputs[1])
    add.inputs[place] = work.constant(f"{old.name}.folded", cast_like(wide(old) + more, old))
