"""Matrix products, and which part of a vision transformer each belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from slimdeploy.errors import InputError
from slimdeploy.graph.work import Node, Tensor, Work, is_constant
from slimdeploy.precision.options import Part, PrecisionOptions
from slimdeploy.precision.roles import check_names
from slimdeploy.precision.streams import Ancestors, has_weights, residual_sums, source

_WHY_NONE: dict[Part, str] = {
    "attention": "no product of two computed tensors is here; opset 23's Attention operators stay "
    "whole",
    "embedding": "no product with stored weights takes the image",
    "head": "no product with stored weights is behind the blocks",
}


@dataclass(frozen=True)
class Product:
    """A matrix product or convolution, and where it stands.

    Attributes:
        node: the operator.
        part: "block" for a projection of a transformer block.
        axis: of the stored weights, along which each output channel has its own scale; None for
            a product of two computed tensors.
    """

    node: Node
    part: Literal["block"] | Part
    axis: int | None

    @property
    def name(self) -> str:
        """How flags and messages call it."""
        return str(self.node.name or self.node.outputs[0].name)

    def read(self) -> list[Tensor]:
        """The computed operands, which are quantised with a range for all of the tensor."""
        return list(self.node.inputs[: 1 if self.axis is not None else 2])


def find_products(work: Work) -> list[Product]:
    """All products of float32 tensors that could be quantised, in order."""
    before, sums = Ancestors(work), residual_sums(work)
    inside = 0
    for number, node in enumerate(work.graph.nodes):
        if id(node) in sums:
            inside |= before.bits[number]
    found = []
    for number, node in enumerate(work.graph.nodes):
        if has_weights(node) and (axis := _channels(node)) is not None:
            first = not before.bits[number] & before.weighted
            last = bool(inside) and not inside >> number & 1
            part: Literal["block"] | Part = "embedding" if first else "head" if last else "block"
            found.append(Product(node, part, axis))
        elif node.op == "MatMul" and not any(is_constant(tensor) for tensor in node.inputs):
            found.append(Product(node, "attention", None))
    return found


def chosen(work: Work, options: PrecisionOptions) -> list[Product]:
    """The products that `options` ask to quantise.

    Raises:
        InputError: if a name to leave is no node's, or a part to quantise too has no product.
    """
    check_names(work, options.leave, "--leave")
    found = find_products(work)
    for part in options.also:
        if not any(product.part == part for product in found):
            raise InputError(f"--also {part}: {_WHY_NONE[part]}; leave it out")
    parts = {"block", *options.also}
    return [
        product
        for product in found
        if product.part in parts
        and (product.part == "head" or rows(work, product) >= options.least_rows)
        and not {product.node.name, product.node.outputs[0].name} & set(options.leave)
    ]


def rows(work: Work, product: Product) -> int:
    """How many rows are multiplied for one image; of a Conv, how many pixels it gives."""
    shape = work.facts.shape(product.node.outputs[0].name)
    if product.node.op == "Conv":
        return _count(shape[2:])
    # Rows of all images of a batch may lie in one axis, so they are counted first.
    return _count(shape[:-1]) // _fixed_batch(work)


def _count(sizes: Sequence[int]) -> int:
    """The product of sizes; a varying one stands for one image."""
    return int(np.prod([abs(size) for size in sizes], dtype=np.int64))


def _fixed_batch(work: Work) -> int:
    """Images that the graph takes at a time; 1 where that varies."""
    batch = next(iter(work.facts.shape(work.graph.inputs[0].name)), 1)
    return max(1, batch)


def observed(products: Sequence[Product]) -> list[str]:
    """Names of the tensors whose ranges are needed, each once."""
    return list(dict.fromkeys(source(t).name for product in products for t in product.read()))


def _channels(node: Node) -> int | None:
    """The axis of output channels of stored float32 weights; None for other products."""
    weight = node.inputs[1]
    if not is_constant(weight) or weight.dtype != np.float32:
        return None
    if node.op == "Conv":
        return 0
    if len(weight.shape) != 2 or node.attrs.get("transA", 0):
        return None
    return 0 if node.op == "Gemm" and node.attrs.get("transB", 0) else 1
