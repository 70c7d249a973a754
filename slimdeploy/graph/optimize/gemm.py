"""Write projections as Gemm on rows, which adds the bias while it multiplies."""

from __future__ import annotations

import numpy as np

from slimdeploy.graph.axes import Shape
from slimdeploy.graph.files.external import Array
from slimdeploy.graph.optimize.base import Optimization
from slimdeploy.graph.optimize.patterns import (
    is_end,
    is_product,
    is_vector,
    made_by,
    only_reader,
    operands,
)
from slimdeploy.graph.reshapes import reshape_target, set_target
from slimdeploy.graph.work import Node, Tensor, Work, is_constant

_ROW_WISE = frozenset(
    ("Add", "Div", "Erf", "Gelu", "LayerNormalization", "Mul", "Relu", "Sigmoid", "Tanh")
)
"""What stands between projections and may work on rows; all its constants must be vectors."""


class Gemm2D(Optimization):
    """Replace MatMul and Add of a stored bias on [B, N, D] by one Gemm on rows [B·N, D].

    What stands between two projections and works row by row, as the activation of an MLP, stays
    on rows, so that only the ends of such a stretch are reshaped. With `stream` the residual
    stream and its norms are kept on rows too.

    Example:
        before: m = MatMul(x, W); a = Add(m, c); g = Gelu(a); n = MatMul(g, V); y = Add(n, d)
        after:  r = Reshape(x, [-1, D]); a = Gemm(r, W, c); g = Gelu(a); n = Gemm(g, V, d)
                y = Reshape(n, [-1, N, D])
    """

    def __init__(self, stream: bool = False) -> None:
        super().__init__()
        self.stream = stream

    def rewrite(self, work: Work) -> None:
        sweep = _Sweep(work, self.stream)
        for node in list(work.graph.nodes):
            sweep.visit(node)


class _Sweep:
    """One visit to every node, in order.

    `rows` holds for a tensor [B, N, E], by its identity, the rows computed in its place; `tokens`
    and `flat` the Reshapes made of rows to tokens and of tokens to rows, each once.
    """

    def __init__(self, work: Work, stream: bool) -> None:
        self.work = work
        self.stream = stream
        self.rows: dict[int, Tensor] = {}
        self.tokens: dict[int, Tensor] = {}
        self.flat: dict[int, Tensor] = {}
        self.absorbed: set[int] = set()

    def visit(self, node: Node) -> None:
        if id(node) in self.absorbed:
            return
        if self._multiplies(node):
            self._multiply(node)
        elif self._passes(node):
            inputs = [t if is_constant(t) else self._rows_of(t) for t in node.inputs]
            output = node.outputs[0]
            stem = f"{output.name}.rows"
            last = {"axis": -1} if "axis" in node.attrs else {}  # of rows it is 1, of tokens 2
            self.rows[id(output)] = self.work.add(node.op, stem, inputs, **node.attrs | last)
        elif node.op == "Reshape" and id(node.inputs[0]) in self.rows:
            self._reshape(node)
        else:
            for index, tensor in enumerate(node.inputs):
                if id(tensor) in self.rows:
                    node.inputs[index] = self._tokens_of(tensor)

    def _multiplies(self, node: Node) -> bool:
        if not is_product(node) or len(self._shape(node.inputs[0])) != 3:
            return False
        if is_end(self.work, node.outputs[0]):
            return False
        return id(node.inputs[0]) in self.rows or self._bias(node) is not None

    def _bias(self, product: Node) -> Node | None:
        """The Add of a stored vector to the product."""
        add = only_reader(self.work, product.outputs[0])
        pair = operands(add) if add is not None and add.op == "Add" else None
        if add is None or pair is None or is_end(self.work, add.outputs[0]):
            return None
        return add if is_vector(pair[1], product.inputs[1].shape[-1]) else None

    def _multiply(self, node: Node) -> None:
        add = self._bias(node)
        inputs = [self._rows_of(node.inputs[0]), node.inputs[1]]
        stem = f"{node.name or node.outputs[0].name}.rows"
        if add is None:
            self.rows[id(node.outputs[0])] = self.work.add("MatMul", stem, inputs)
            return
        bias = next(tensor for tensor in add.inputs if is_constant(tensor))
        if len(bias.shape) != 1:
            bias = self.work.constant(f"{bias.name}.row", np.ravel(bias.values))
        self.rows[id(add.outputs[0])] = self.work.add("Gemm", stem, [*inputs, bias])
        self.absorbed.add(id(add))

    def _passes(self, node: Node) -> bool:
        """Whether the node is better computed on rows: what it reads is there already."""
        output = node.outputs[0]
        shape = self._shape(output)
        if node.op not in _ROW_WISE or len(node.outputs) != 1 or is_end(self.work, output):
            return False
        if len(shape) != 3 or int(node.attrs.get("axis", -1)) not in (-1, 2):
            return False
        fixed = [tensor for tensor in node.inputs if is_constant(tensor)]
        moving = [tensor for tensor in node.inputs if not is_constant(tensor)]
        on_rows = [id(tensor) in self.rows for tensor in moving]
        if any(self._shape(tensor) != shape for tensor in moving):
            return False
        return (any(on_rows) if self.stream else all(on_rows)) and all(map(_fits_rows, fixed))

    def _reshape(self, node: Node) -> None:
        """A Reshape of tokens takes the rows: their elements lie in the same order."""
        tensor, new = node.inputs[0], self._shape(node.outputs[0])
        old = self._row_shape(tensor)
        if reshape_target(old, new).count(-1) > 1:
            node.inputs[0] = self._tokens_of(tensor)
            return
        node.inputs[0] = self.rows[id(tensor)]
        set_target(self.work, node, old, new)

    def _shape(self, tensor: Tensor) -> Shape:
        return self.work.facts.shapes.get(tensor.name, ())

    def _row_shape(self, tensor: Tensor) -> Shape:
        batch, tokens, width = self._shape(tensor)
        return batch * tokens, width

    def _rows_of(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self.rows:
            return self.rows[id(tensor)]
        if id(tensor) not in self.flat:
            maker = made_by(tensor, "Reshape")
            alone = maker is not None and only_reader(self.work, tensor) is not None
            source = maker.inputs[0] if maker is not None and alone else tensor
            target = np.asarray([-1, self._shape(tensor)[-1]], np.int64)
            self.flat[id(tensor)] = self._reshaped(source, f"{tensor.name}.rows", target)
        return self.flat[id(tensor)]

    def _tokens_of(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self.tokens:
            target = reshape_target(self._row_shape(tensor), self._shape(tensor))
            rows = self.rows[id(tensor)]
            stem = f"{tensor.name}.tokens"
            self.tokens[id(tensor)] = self._reshaped(rows, stem, np.asarray(target, np.int64))
        return self.tokens[id(tensor)]

    def _reshaped(self, tensor: Tensor, stem: str, target: Array) -> Tensor:
        return self.work.add(
            "Reshape", stem, [tensor, self.work.constant(f"{stem}.target", target)]
        )


def _fits_rows(tensor: Tensor) -> bool:
    """Whether a constant broadcasts over rows as it does over tokens."""
    return all(size == 1 for size in tuple(tensor.shape)[:-1]) and len(tensor.shape) <= 2
