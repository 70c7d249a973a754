"""Write GELU as one operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from slimdeploy.graph.files.external import Array
from slimdeploy.graph.optimize.base import Optimization
from slimdeploy.graph.optimize.patterns import bypass, is_end, only_reader, scalar
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, producer

_GELU_OPSET = 20
_POINTS = np.linspace(-6.0, 6.0, 49)
_ERF = np.vectorize(math.erf)
_LONGEST = 6
"""Nodes from the Erf or Tanh to the end of the longest known form, counted generously."""

_REMEDY = (
    "so its nodes stay, in the order that ONNX Runtime fuses; export with "
    f"{_GELU_OPSET} or later, or raise it with onnx.version_converter"
)
_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Neg": np.negative,
    "Tanh": np.tanh,
    "Erf": _ERF,
}


class ErfGelu(Optimization):
    """Replace the nodes that compute x·Φ(x) by Gelu, or by the order of them that runtimes know.

    A GELU is recognised by what it computes, not by how it is written: the nodes around an Erf
    or Tanh that depend on one tensor and on single numbers are a function of one variable, which
    is compared with GELU at 49 points from -6 to 6. Before opset 20, which has no Gelu, the five
    nodes of an exact GELU are written in the one order that ONNX Runtime fuses. The opset itself
    is never raised here; `onnx.version_converter.convert_version(model, 20)` does that first.

    Example (opset 20):
        before: d = Div(x, 1.4142); e = Erf(d); a = Add(e, 1); h = Mul(0.5, a); y = Mul(x, h)
        after:  y = Gelu(x)
    """

    def rewrite(self, work: Work) -> None:
        for node in list(work.graph.nodes):
            if node.op in ("Erf", "Tanh") and node.outputs:
                self._replace(work, node)

    def _replace(self, work: Work, anchor: Node) -> None:
        exact = anchor.op == "Erf"
        found = _found(work, anchor, _gelu if exact else _tanh_gelu)
        if found is None and exact:
            self.leave(anchor, "no GELU is computed around it")
        if found is None:
            return
        old, x = found.end.outputs[0], found.variable
        if work.graph.opset >= _GELU_OPSET:
            bypass(work, found.end, _write_one(work, old, x, exact))
        elif exact and found.kind is not None:
            bypass(work, found.end, _write_five(work, old, x, found.kind))
            self.leave(anchor, f"opset {work.graph.opset} has no Gelu, {_REMEDY}")


def _found(work: Work, anchor: Node, wanted: Callable[[Array], Array]) -> _Function | None:
    for end in _ends(work, anchor):
        function = _Function.of(work, end)
        if function is not None and function.equals(wanted):
            return function
    return None


def _gelu(x: Array) -> Array:
    result: Array = 0.5 * x * (1 + _ERF(x / math.sqrt(2)))
    return result


def _tanh_gelu(x: Array) -> Array:
    result: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return result


def _ends(work: Work, anchor: Node) -> Iterator[Node]:
    """The nodes that a GELU around `anchor` may end in."""
    node: Node | None = anchor
    for _ in range(_LONGEST):
        node = only_reader(work, node.outputs[0]) if node is not None else None
        if node is None or node.op not in _FUNCTIONS:
            return
        yield node


class _Function:
    """A function of one tensor, element by element, that ends in one node."""

    def __init__(self, variable: Tensor, end: Node, nodes: list[Node]) -> None:
        self.variable = variable
        self.end = end
        self.nodes = nodes

    @classmethod
    def of(cls, work: Work, end: Node) -> _Function | None:
        """The function that `end` computes; None if of several tensors, or read in between."""
        nodes: list[Node] = []
        leaves: dict[int, Tensor] = {}
        pending = [end.outputs[0]]
        while pending:
            tensor = pending.pop()
            node = producer(tensor)
            if node is not None and _is_step(node):
                if not any(other is node for other in nodes):
                    nodes.append(node)
                    pending += list(node.inputs)
            elif not is_constant(tensor):
                leaves[id(tensor)] = tensor
        inner = [node.outputs[0] for node in nodes if node is not end]
        closed = all(_is_inside(work, tensor, nodes) for tensor in inner)
        return cls(next(iter(leaves.values())), end, nodes) if closed and len(leaves) == 1 else None

    @property
    def kind(self) -> np.dtype[Any] | None:
        """The type of its constants; None without any."""
        numbers = (t for node in self.nodes for t in node.inputs if is_constant(t))
        first = next(numbers, None)
        return None if first is None else np.dtype(first.dtype)

    def equals(self, wanted: Callable[[Array], Array]) -> bool:
        """Whether it is `wanted` at all points, but for the rounding of its constants."""
        if self.kind is None:
            return False
        tolerance = 2e-3 if self.kind == np.float16 else 2e-6
        with np.errstate(all="ignore"):
            found = self._at(self.end.outputs[0], {})
        return bool(np.all(np.abs(found - wanted(_POINTS)) <= tolerance))

    def _at(self, tensor: Tensor, known: dict[int, Array]) -> Array:
        if tensor is self.variable:
            return _POINTS
        if (number := scalar(tensor)) is not None:
            return np.asarray(number)
        if id(tensor) not in known:
            node = producer(tensor)
            assert node is not None  # `of` followed producers to get here
            values = [self._at(operand, known) for operand in node.inputs]
            known[id(tensor)] = _FUNCTIONS[node.op](*values)
        return known[id(tensor)]


def _is_step(node: Node) -> bool:
    """Whether the node computes element by element from tensors and single numbers."""
    fixed = [tensor for tensor in node.inputs if is_constant(tensor)]
    return node.op in _FUNCTIONS and all(scalar(tensor) is not None for tensor in fixed)


def _is_inside(work: Work, tensor: Tensor, nodes: list[Node]) -> bool:
    readers = all(any(reader is node for node in nodes) for reader in tensor.outputs)
    return readers and not is_end(work, tensor)


def _write_one(work: Work, old: Tensor, x: Tensor, exact: bool) -> Tensor:
    kind = "none" if exact else "tanh"
    return work.add("Gelu", f"{old.name}.gelu", [x], approximate=kind)


def _write_five(work: Work, old: Tensor, x: Tensor, kind: np.dtype[Any]) -> Tensor:
    """Div, Erf, Add, Mul, Mul, in the order that ONNX Runtime takes for a GELU."""

    def number(stem: str, value: float) -> Tensor:
        return work.constant(f"{old.name}.{stem}", np.asarray(value, kind))

    divided = work.add("Div", f"{old.name}.div", [x, number("root", math.sqrt(2))])
    erf = work.add("Erf", f"{old.name}.erf", [divided])
    plus = work.add("Add", f"{old.name}.plus", [erf, number("one", 1.0)])
    product = work.add("Mul", f"{old.name}.product", [x, plus])
    return work.add("Mul", f"{old.name}.gelu", [product, number("half", 0.5)])
