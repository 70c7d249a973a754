"""Outliers moved from activations into weights: the same function, easier to quantise.

After Xiao et al., "SmoothQuant" (ICML 2023): a channel of an activation is divided by s and the
row of weights that meets it multiplied by s, with s = max|x|^a / max|w|^(1-a).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, producer
from slimdeploy.precision.options import PrecisionOptions
from slimdeploy.precision.products import Product, chosen, find_products
from slimdeploy.precision.streams import MOVES, source

_LEAST = 1e-5
"""A channel that is never used must not be divided by nothing."""


class SmoothOutliers(Pass):
    """Even out the channels of what quantised products read.

    Behind a LayerNormalization the division goes into its scale and shift, at no cost; behind
    anything else that works on single features (GELU) it is a Mul, which compilers fuse with it.

    Taking off the middle of each channel as well was tried, and left out: it moves the many values
    near zero, which a symmetric grid holds best, away from it.

    Example:
        before: h = LayerNormalization(x, g, b); y = MatMul(h, w)
        after:  h = LayerNormalization(x, g / s, b / s); y = MatMul(h, s[:, None] * w)
    """

    def __init__(
        self, options: PrecisionOptions, channels: Mapping[str, Sequence[float]], alpha: float
    ) -> None:
        self.options = options
        self.channels = channels
        self.alpha = alpha

    def call(self, work: Work) -> None:
        for name, products in smoothable(work, self.options).items():
            if name in self.channels:
                self._smooth(work, products, self.channels[name])

    def _smooth(self, work: Work, products: list[Product], seen: Sequence[float]) -> None:
        largest = np.asarray(seen, np.float32)
        scale = _scale(largest, _weights_largest(products), self.alpha)
        for product in products:
            weight = product.node.inputs[1]
            shape = (-1, 1) if product.axis == 1 else (1, -1)
            values = (weight.values * scale.reshape(shape)).astype(np.float32)
            product.node.inputs[1] = work.constant(f"{weight.name}.smoothed", values)
        _divide(work, source(products[0].node.inputs[0]), scale)


def _divide(work: Work, tensor: Tensor, scale: NDArray[np.float32]) -> None:
    """Let all that reads `tensor` read it divided by `scale`."""
    maker = producer(tensor)
    assert maker is not None
    stem = f"{tensor.name}.smoothed"
    if _is_plain_norm(maker):
        for index in (1, 2):
            old = maker.inputs[index]
            maker.inputs[index] = work.constant(f"{old.name}.smoothed", old.values / scale)
        return
    readers = [(node, i) for node in tensor.outputs for i in _places(node, tensor)]
    made = work.add("Mul", stem, [tensor, work.constant(f"{stem}.factor", np.float32(1) / scale)])
    for node, index in readers:
        node.inputs[index] = made


def smoothable(work: Work, options: PrecisionOptions) -> dict[str, list[Product]]:
    """Tensors whose channels can be scaled, each with all that reads it: products with weights.

    At least one of them is to be quantised.
    """
    wanted = {id(product.node) for product in chosen(work, options)}
    groups: dict[str, list[Product]] = {}
    for product in find_products(work):
        if product.node.op != "Conv" and product.axis is not None:
            groups.setdefault(source(product.node.inputs[0]).name, []).append(product)
    return {
        name: group
        for name, group in groups.items()
        if _can_scale(work, group) and any(id(product.node) in wanted for product in group)
    }


def _can_scale(work: Work, products: list[Product]) -> bool:
    tensor = source(products[0].node.inputs[0])
    readers = {id(product.node) for product in products}
    maker = producer(tensor)
    if maker is None or maker.op in ("MatMul", "Gemm", "Attention"):
        return False  # the image, or a bias comes in between: nothing to fold into
    return all(
        _keeps_channels(work, product.node.inputs[0]) for product in products
    ) and _read_only_by(work, tensor, readers)


def _keeps_channels(work: Work, tensor: Tensor) -> bool:
    """Whether nothing between a tensor and its source touches the last axis."""
    node = producer(tensor)
    while node is not None and node.op in MOVES and node.op != "Concat":
        before = work.facts.shape(node.inputs[0].name)
        after = work.facts.shape(node.outputs[0].name)
        axis = node.attrs.get("axis", 0) % len(before)
        fixed = {
            "Gather": axis != len(before) - 1,
            "Reshape": before[-1] == after[-1],
            "Transpose": node.attrs.get("perm", [0])[-1] == len(before) - 1,
            "Identity": True,
        }
        if not fixed.get(node.op, False):
            return False
        node = producer(node.inputs[0])
    return True


def _read_only_by(work: Work, tensor: Tensor, readers: set[int]) -> bool:
    if any(tensor is output for output in work.graph.outputs):
        return False
    return all(
        id(node) in readers or (node.op in MOVES and _read_only_by(work, node.outputs[0], readers))
        for node in tensor.outputs
    )


def _is_plain_norm(node: Node) -> bool:
    return (
        node.op == "LayerNormalization"
        and len(node.inputs) == 3
        and all(is_constant(tensor) and len(tensor.outputs) == 1 for tensor in node.inputs[1:])
    )


def _weights_largest(products: list[Product]) -> NDArray[np.float32]:
    """The largest absolute weight that meets each input channel."""
    sizes = [np.abs(p.node.inputs[1].values).max(axis=p.axis) for p in products]
    return np.asarray(np.maximum.reduce(sizes), np.float32)


def _scale(
    activations: NDArray[np.float32], weights: NDArray[np.float32], alpha: float
) -> NDArray[np.float32]:
    """What each channel is divided by, of geometric mean 1."""
    raw = np.maximum(activations, _LEAST) ** alpha / np.maximum(weights, _LEAST) ** (1 - alpha)
    return np.asarray(raw / np.exp(np.log(raw).mean()), np.float32)


def _places(node: Node, tensor: Tensor) -> list[int]:
    return [index for index, other in enumerate(node.inputs) if other is tensor]
