"""A patch embedding as a matrix product: for runtimes that quantise products but not this Conv."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from slimdeploy.graph.optimize.patterns import only_reader
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, producer


class UnfoldPatches(Pass):
    """Rewrite each convolution whose patches touch without overlap as a Gemm over pixels.

    Example:
        before: y = Conv<strides=[16, 16]>(image [B, 3, 224, 224], w [192, 3, 16, 16], b)
        after:  p = Reshape(Transpose(Reshape(image))) [B * 196, 768]
                y = Transpose(Reshape(Gemm(p, w [768, 192], b))); without that Transpose where
                only one back to tokens reads y
    """

    def call(self, work: Work) -> None:
        for node in list(work.graph.nodes):
            if _is_embedding(work, node):
                _unfold(work, node)


def _is_embedding(work: Work, node: Node) -> bool:
    if node.op != "Conv" or not is_constant(node.inputs[1]) or len(node.inputs[1].shape) != 4:
        return False
    attrs, kernel = node.attrs, list(node.inputs[1].shape[2:])
    size = work.facts.shapes.get(node.inputs[0].name, ())
    return (
        list(attrs.get("strides", [1, 1])) == kernel
        and not any(attrs.get("pads", []))
        and attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and attrs.get("group", 1) == 1
        and all(d == 1 for d in attrs.get("dilations", []))
        and len(size) == 4
        and not any(side % k for side, k in zip(size[2:], kernel, strict=True))
    )


def _unfold(work: Work, node: Node) -> None:
    image, weight = node.inputs[:2]
    channels, height, width = work.facts.shape(image.name)[1:]
    features, _, down, across = weight.shape
    rows, columns = height // down, width // across
    stem, output = node.name or node.outputs[0].name, node.outputs[0]

    def reshaped(tensor: gs.Tensor, name: str, *shape: int) -> gs.Tensor:
        target = work.constant(f"{stem}.{name}.target", np.asarray(shape, np.int64))
        return work.add("Reshape", f"{stem}.{name}", [tensor, target])

    grid = reshaped(image, "grid", -1, channels, rows, down, columns, across)
    moved = work.add("Transpose", f"{stem}.moved", [grid], perm=[0, 2, 4, 1, 3, 5])
    patches = reshaped(moved, "patches", -1, channels * down * across)
    matrix = np.ascontiguousarray(weight.values.reshape(features, -1).T)
    operands = [patches, work.constant(f"{weight.name}.matrix", matrix), *node.inputs[2:]]
    embedded = work.add("Gemm", f"{stem}.embedded", operands)
    node.outputs.clear()
    if (tokens := _tokens(work, output)) is not None:
        made, wanted = reshaped(embedded, "tokens", -1, rows * columns, features), tokens
    else:
        made, wanted = reshaped(embedded, "pixels", -1, rows, columns, features), output
        made = work.add("Transpose", f"{stem}.channels", [made], perm=[0, 3, 1, 2])
    if (maker := producer(wanted)) is not None:
        maker.outputs.clear()
    last = producer(made)
    assert last is not None
    last.outputs[0] = wanted


def _tokens(work: Work, output: Tensor) -> Tensor | None:
    """The tokens [B, N, C] that nothing but a Reshape and a Transpose make of pixels [B, C, H, W].

    They are the product's rows as it gives them.
    """
    shape = work.facts.shape(output.name)
    node = only_reader(work, output)
    if node is None or node.op != "Reshape":
        return None
    flat = node.outputs[0]
    if work.facts.shape(flat.name) != (shape[0], shape[1], shape[2] * shape[3]):
        return None
    node = only_reader(work, flat)
    turned = node is not None and node.op == "Transpose" and node.attrs.get("perm") == [0, 2, 1]
    return node.outputs[0] if node is not None and turned else None
