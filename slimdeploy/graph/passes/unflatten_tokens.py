"""Undo the merging of batch and tokens into rows, so that each tensor shows its tokens again."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from slimdeploy.errors import GraphError
from slimdeploy.graph.axes import Shape
from slimdeploy.graph.axes.elementwise import ELEMENTWISE
from slimdeploy.graph.passes.base import Pass, run
from slimdeploy.graph.reshapes import reshape_target, set_target
from slimdeploy.graph.work import Node, Tensor, Work, drop_identities, is_constant

_NORMS = ("LayerNormalization", "RMSNormalization", "Softmax")


class UnflattenTokens(Pass):
    """Let nodes that work on rows [B·N, D] work on tokens [B, N, D] instead.

    Exporters and optimisers write a projection as Reshape to rows, Gemm, Reshape back, and may
    keep norms, activations and sums in between as rows too. On rows batch and tokens are one axis,
    of which no token can be selected. Whatever follows such a Reshape and works row by row is
    given the tensor before it; a node that does not is given rows as before.

    Example:
        before: r = Reshape(x, [-1, D]); g = Gemm(r, W, c); y = Reshape(g, [-1, N, E])
        after:  m = MatMul(x, W); y = Add(m, c)
    """

    def __init__(self) -> None:
        self._outputs: dict[str, Shape] = {}

    def call(self, work: Work) -> None:
        self._outputs = {t.name: work.facts.shape(t.name) for t in _known_outputs(work)}
        sweep = _Sweep(work)
        for node in list(work.graph.nodes):
            sweep.visit(node)
        drop_identities(work)

    def ensures(self, work: Work) -> None:
        """Every output has the shape that it had."""
        for name, shape in self._outputs.items():
            if work.facts.shape(name) != shape:
                raise GraphError(f"output '{name}' became {work.facts.shape(name)}, was {shape}")


def unflatten(work: Work) -> None:
    """Run `UnflattenTokens` if there is anything for it to do."""
    if any(_merges(work, node) for node in work.graph.nodes):
        run([UnflattenTokens()], work)


def _merges(work: Work, node: Node) -> bool:
    """Whether the node turns [B, N, ...] into rows [B·N, D]."""
    if node.op not in ("Reshape", "Flatten") or _is_end(work, node.outputs[0]):
        return False
    shapes = [work.facts.shapes.get(t.name, ()) for t in (node.inputs[0], node.outputs[0])]
    old, new = shapes
    return len(old) > 2 and len(new) == 2 and math.prod(old[:2]) == new[0]


def _known_outputs(work: Work) -> list[Tensor]:
    return [tensor for tensor in work.graph.outputs if tensor.name in work.facts.shapes]


class _Sweep:
    """One visit to every node, in order.

    `tokens` holds for each tensor of rows, by its identity, the tensor [B, N, ...] in its place
    and the sizes (B, N); nodes that work row by row are changed in place, so that they keep names.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.tokens: dict[int, tuple[Tensor, Shape]] = {}
        self.rows: dict[int, Tensor] = {}

    def visit(self, node: Node) -> None:
        if node.op in ("Reshape", "Flatten") and id(node.inputs[0]) not in self.tokens:
            self._enter(node)
        elif node.op == "Reshape" and not is_constant(node.outputs[0]):
            self._leave(node)
        elif any(id(tensor) in self.tokens for tensor in node.inputs):
            lead = self._lead(node)
            if lead is None:
                self._keep_rows(node)
            else:
                self._convert(node, lead)

    def _enter(self, node: Node) -> None:
        """A Reshape of [B, N, ...] to [B·N, D]."""
        if not _merges(self.work, node):
            return
        source, target = node.inputs[0], node.outputs[0]
        old, new = (self.work.facts.shape(tensor.name) for tensor in (source, target))
        if len(old) > 3:
            sizes = np.asarray([0, 0, new[1]], np.int64)
            shape = self.work.constant(f"{target.name}.target", sizes)
            source = self.work.add("Reshape", f"{target.name}.tokens", [source, shape])
        self.tokens[id(target)] = source, old[:2]

    def _leave(self, node: Node) -> None:
        """A Reshape of rows to anything else: from the tokens it is the same."""
        rows = node.inputs[0]
        tensor, lead = self.tokens[id(rows)]
        old = (*lead, self.work.facts.shape(rows.name)[-1])
        new = self.work.facts.shape(node.outputs[0].name)
        if old == new:
            node.op, node.inputs = "Identity", [tensor]
            node.attrs.clear()
        elif reshape_target(old, new).count(-1) > 1:
            self._keep_rows(node)
        else:
            node.inputs[0] = tensor
            set_target(self.work, node, old, new)

    def _lead(self, node: Node) -> Shape | None:
        """The sizes (B, N) if `node` works row by row on tokens of those sizes."""
        leads = {self.tokens[id(t)][1] for t in node.inputs if id(t) in self.tokens}
        others = [tensor for tensor in node.inputs if id(tensor) not in self.tokens and tensor.name]
        inner = len(node.outputs) == 1 and not _is_end(self.work, node.outputs[0])
        if not inner or len(leads) != 1 or not all(is_constant(tensor) for tensor in others):
            return None
        return next(iter(leads)) if _is_row_wise(node, others) else None

    def _convert(self, node: Node, lead: Shape) -> None:
        output = node.outputs[0]
        for index, tensor in enumerate(node.inputs):
            if id(tensor) in self.tokens:
                node.inputs[index] = self.tokens[id(tensor)][0]
        if node.op == "Gemm":
            _to_matmul(self.work, node)
        elif node.op in _NORMS:
            node.attrs["axis"] = -1
        output.shape = None
        self.tokens[id(output)] = output, lead

    def _keep_rows(self, node: Node) -> None:
        """Give `node` rows: those of a tensor that became tokens are made anew, once."""
        for index, tensor in enumerate(node.inputs):
            if id(tensor) not in self.tokens or self.tokens[id(tensor)][0] is not tensor:
                continue  # the Reshape to rows is still there
            if id(tensor) not in self.rows:
                width = self.work.facts.shape(tensor.name)[-1]
                shape = self.work.constant(f"{tensor.name}.target", np.asarray([-1, width]))
                stem = f"{tensor.name}.rows"
                self.rows[id(tensor)] = self.work.add("Reshape", stem, [tensor, shape])
            node.inputs[index] = self.rows[id(tensor)]


def _is_end(work: Work, tensor: Tensor) -> bool:
    return any(tensor is output for output in work.graph.outputs)


def _is_row_wise(node: Node, others: list[Tensor]) -> bool:
    """Whether each row of the result depends on that row alone; `others` are stored operands."""
    if node.op in ("MatMul", "Gemm"):
        weight, *bias = others if others and node.inputs[1] is others[0] else [None]
        right = weight is not None and len(weight.shape) == 2 and not node.attrs.get("transA")
        return right and all(_is_vector(tensor) for tensor in bias)
    if node.op in _NORMS:
        return int(node.attrs.get("axis", -1)) in (-1, 1)
    return node.op in ELEMENTWISE and all(_is_vector(tensor) for tensor in others)


def _is_vector(tensor: Tensor) -> bool:
    return all(size == 1 for size in tuple(tensor.shape)[:-1])


def _to_matmul(work: Work, node: Node) -> None:
    """Gemm as MatMul and Add; alpha, beta and transB are worked into copies of the constants."""
    alpha, beta = (float(node.attrs.get(name, 1.0)) for name in ("alpha", "beta"))
    data, weight, *bias = node.inputs
    if node.attrs.get("transB") or alpha != 1.0:
        values = weight.values.T if node.attrs.get("transB") else weight.values
        weight = work.constant(f"{weight.name}.right", values * values.dtype.type(alpha))
    output = node.outputs[0]
    node.op, node.inputs = "MatMul", [data, weight]
    node.attrs.clear()
    if not bias or not bias[0].name:
        return
    if beta != 1.0:
        values = bias[0].values
        bias[0] = work.constant(f"{bias[0].name}.right", values * values.dtype.type(beta))
    node.outputs.clear()
    product = gs.Variable(work.fresh(f"{output.name}.product"), dtype=output.dtype)
    node.outputs.append(product)
    name = work.fresh(f"{output.name}.biased")
    work.graph.nodes.append(gs.Node("Add", name, {}, [product, bias[0]], [output]))
