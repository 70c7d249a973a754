"""The graph under work and what every pass asks of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from slimdeploy.errors import GraphError
from slimdeploy.graph.axes import Op, Relation, opaque, relate
from slimdeploy.graph.files.convert import constants_of, import_graph, in_order, nodes_of
from slimdeploy.graph.files.external import Array
from slimdeploy.graph.files.storage import copy_fields
from slimdeploy.graph.files.structure import add_initializer
from slimdeploy.graph.shapes import Facts, infer

Node: TypeAlias = Any  # onnx_graphsurgeon is untyped
Tensor: TypeAlias = Any

_LONGEST = 1 << 23
"""Positions of axes are listed one by one: no file may ask for a list that fills the memory."""


@dataclass
class Work:
    """A graph that passes rewrite in place, with the facts that hold of it at the moment.

    Build it with `Work.of`, which leaves the caller's model alone; get the result with `export`.
    Facts stay valid as long as no tensor changes its shape; `refresh` renews them. Weights are
    not copied: a constant of the model is read from it when its `values` are asked for.

    An operator of another domain than ONNX's own goes by `domain::Name`, so that no pass takes
    it for ONNX's operator of that name.
    """

    graph: Any
    facts: Facts
    origin: onnx.ModelProto
    notes: list[str] = field(default_factory=list)
    _relations: dict[int, Relation] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._names.update(self.graph.tensors())

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Work:
        """`model` to work on; it must not change as long as this does.

        Raises:
            GraphError: if the model is not a valid graph, with the node or tensor at fault.
        """
        graph = import_graph(model)
        origin = onnx.ModelProto()
        copy_fields(model, origin, {"graph", "functions"})
        return cls(graph, infer(nodes_of(graph, origin), constants_of(graph)), origin)

    def export(self) -> onnx.ModelProto:
        """The graph as a model, with the original's file-level metadata."""
        model = nodes_of(self.graph, self.origin)
        for name, held in constants_of(self.graph).items():
            add_initializer(model, name, held)
        return model

    def refresh(self) -> None:
        """Infer the facts anew, after nodes were added or shapes changed."""
        self.graph.cleanup()
        self.graph.nodes[:] = in_order(self.graph.nodes)
        self.facts = infer(nodes_of(self.graph, self.origin), constants_of(self.graph))
        self._relations.clear()

    def relation(self, node: Node) -> Relation:
        """What `node` does to axes, from the table; opaque where a shape is unknown."""
        if id(node) not in self._relations:
            self._relations[id(node)] = self._relate(node)
        return self._relations[id(node)]

    def _relate(self, node: Node) -> Relation:
        try:
            inputs = tuple(self.facts.shape(t.name) if t.name else () for t in node.inputs)
            outputs = tuple(self.facts.shape(t.name) for t in node.outputs if t.name)
        except GraphError as error:
            return Relation(why=str(error))
        if max((size for shape in (*inputs, *outputs) for size in shape), default=0) > _LONGEST:
            return opaque(f"it has an axis of more than {_LONGEST} positions")
        values = tuple(self.facts.values.numbers(t.name) for t in node.inputs)
        return relate(Op(node.op, inputs, outputs, values, node.attrs))

    def constant(self, stem: str, values: Array) -> Tensor:
        """A new constant; equal ones are not shared, so that a later edit touches one use."""
        return gs.Constant(self.fresh(stem), np.asarray(values))

    def add(self, op: str, stem: str, inputs: list[Tensor], **attrs: Any) -> Tensor:
        """Append a node and return its only output, which is named after `stem`."""
        name = self.fresh(stem)
        output = gs.Variable(name, dtype=inputs[0].dtype)
        self.graph.nodes.append(gs.Node(op, name, attrs, inputs, [output]))
        return output

    def fresh(self, stem: str) -> str:
        """`stem`, numbered if a tensor bears that name already."""
        name, number = stem, 0
        while name in self._names:
            number += 1
            name = f"{stem}.{number}"
        self._names.add(name)
        return name


def is_constant(tensor: Tensor) -> bool:
    """Whether the tensor is stored in the file."""
    return isinstance(tensor, gs.Constant)


def is_read(work: Work, tensor: Tensor) -> bool:
    """Whether a node or the caller reads `tensor`."""
    return bool(tensor.outputs) or _is_end(work, tensor)


def producer(tensor: Tensor) -> Node | None:
    """The node that computes `tensor`, None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def node_error(node: Node, why: str) -> GraphError:
    """An error that names `node`; by its first output if it has no name of its own."""
    return GraphError(f"{label(node)}: {why}")


def label(node: Node) -> str:
    """How messages name a node."""
    return f"node '{node.name or node.outputs[0].name}' ({node.op})"


def replace_uses(old: Tensor, new: Tensor) -> None:
    """Make every consumer of `old` read `new`."""
    for node in list(old.outputs):
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new


def drop_identities(work: Work) -> None:
    """Bypass every Identity, except from one graph input or output to another."""
    work.graph.cleanup()  # nodes whose outputs were folded have none left
    for node in list(work.graph.nodes):
        if node.op != "Identity":
            continue
        source, target = node.inputs[0], node.outputs[0]
        if not _is_end(work, target):
            replace_uses(target, source)
        elif (maker := producer(source)) is not None and not _is_end(work, source):
            node.outputs.clear()
            place = next(i for i, output in enumerate(maker.outputs) if output is source)
            maker.outputs[place] = target
            replace_uses(source, target)


def _is_end(work: Work, tensor: Tensor) -> bool:
    return any(tensor is output for output in work.graph.outputs)
