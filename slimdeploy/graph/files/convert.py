"""Between ONNX's messages and graphsurgeon's graphs, without copying weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from slimdeploy.errors import GraphError, one_line
from slimdeploy.graph.files.sanity import OWN_DOMAINS, check_nodes, check_source
from slimdeploy.graph.files.storage import copy_fields
from slimdeploy.graph.files.stored import Held, StoredConstant, hold
from slimdeploy.graph.files.structure import declare, inlined

gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.CRITICAL  # it prints; what matters is raised

_OLDEST_IR = 4
"""From here on a stored tensor need not be listed among the inputs, which is how we write it."""


def import_graph(model: onnx.ModelProto) -> Any:
    """A graph whose constants read their numbers from `model`, its nodes in order.

    Functions are inlined; `Constant` nodes become constants.

    Raises:
        GraphError: if the model is not a valid graph, with the node or tensor at fault.
    """
    check_source(model)
    if (source := inlined(model)) is not model:
        check_source(source)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    stored.update(_constants(source.graph))
    graph = _imported(_without_stored(source, stored))
    for name, tensor in graph.tensors().items():
        if name in stored:
            tensor.to_constant(hold(stored[name]))
            tensor.__class__ = StoredConstant
    for node in graph.nodes:
        if (node.domain or "") not in OWN_DOMAINS:
            node.op = f"{node.domain}::{node.op}"
        node.domain = None
    _distinct_names(graph.nodes)
    graph.nodes[:] = in_order(graph.nodes)
    check_nodes(declare(nodes_of(graph, model), constants_of(graph)))
    return graph


def _imported(model: onnx.ModelProto) -> Any:
    try:
        return gs.import_onnx(model)
    except Exception as error:  # an attribute in a form that it does not expect
        raise GraphError(f"graphsurgeon cannot read the graph: {one_line(error)}") from error


def _distinct_names(nodes: Sequence[Any]) -> None:
    """Take the name from all but the first of its bearers: some runtimes insist on it."""
    seen: set[str] = set()
    for node in nodes:
        node.name = "" if node.name in seen else node.name
        seen.add(node.name)


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The tensors that `Constant` nodes hold, by the name of the node's output."""
    ends = {value.name for value in graph.output}
    return {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant"
        and node.domain in OWN_DOMAINS
        and node.output[0] not in ends
        and [attribute.name for attribute in node.attribute] == ["value"]
    }


def _without_stored(model: onnx.ModelProto, stored: Mapping[str, Any]) -> onnx.ModelProto:
    """`model` without what it stores, and without inputs that only name such a tensor."""
    rest = onnx.ModelProto()
    copy_fields(model, rest, {"graph", "functions"})
    copy_fields(model.graph, rest.graph, {"initializer", "node", "input", "value_info"})
    rest.graph.input.extend(value for value in model.graph.input if value.name not in stored)
    rest.graph.node.extend(
        node for node in model.graph.node if any(node.output) and node.output[0] not in stored
    )
    return rest


def in_order(nodes: Sequence[Any]) -> list[Any]:
    """The nodes such that each follows those it reads from; otherwise as they stand.

    Raises:
        GraphError: if they form a cycle.
    """
    ordered: list[Any] = []
    state: dict[int, bool] = {}  # False while what a node reads is being placed, then True
    for first in nodes:
        waiting = [first]
        while waiting:
            node = waiting[-1]
            missing = [maker for maker in _makers(node) if not state.get(id(maker))]
            if state.get(id(node)):
                waiting.pop()
            elif not missing:
                ordered.append(waiting.pop())
                state[id(node)] = True
            elif any(state.get(id(maker)) is False for maker in missing):
                raise GraphError(f"node '{node.name or node.outputs[0].name}' reads its own result")
            else:
                state[id(node)] = False
                waiting.extend(reversed(missing))
    return ordered


def _makers(node: Any) -> list[Any]:
    return [maker for tensor in node.inputs for maker in tensor.inputs]


def nodes_of(graph: Any, origin: onnx.ModelProto) -> onnx.ModelProto:
    """A model of the graph's nodes, inputs and outputs, without what it stores.

    Args:
        origin: the message whose file-level fields (opsets, metadata) it takes over.
    """
    model = onnx.ModelProto()
    copy_fields(origin, model, {"graph", "functions", "opset_import"})
    model.ir_version = max(model.ir_version, _OLDEST_IR)
    model.opset_import.extend(graph.import_domains)
    model.graph.name, model.graph.doc_string = graph.name, graph.doc_string
    model.graph.input.extend(_value_info(tensor) for tensor in graph.inputs)
    model.graph.output.extend(_value_info(tensor) for tensor in graph.outputs)
    model.graph.node.extend(_node(node) for node in graph.nodes)
    _import_domains(model)
    return model


def _node(node: Any) -> onnx.NodeProto:
    domain, _, op = node.op.rpartition("::")
    inputs, outputs = (
        [tensor.name for tensor in tensors] for tensors in (node.inputs, node.outputs)
    )
    made = onnx.helper.make_node(op, inputs, outputs, node.name, domain=domain or None)
    for name, value in node.attrs.items():
        if isinstance(value, list) and not value:  # of which type, its length does not say
            made.attribute.add(name=name, type=onnx.AttributeProto.INTS)
        else:
            made.attribute.extend(OnnxExporter.export_attributes({name: value}))
    return made


def _value_info(tensor: Any) -> onnx.ValueInfoProto:
    info: onnx.ValueInfoProto = OnnxExporter.export_value_info_proto(tensor, do_type_check=False)
    return info


def _import_domains(model: onnx.ModelProto) -> None:
    """Name the domains of nodes that a pass has added; their first version is meant."""
    known = {entry.domain for entry in model.opset_import}
    for domain in sorted({node.domain for node in model.graph.node} - known - {"ai.onnx"}):
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))


def constants_of(graph: Any) -> dict[str, Held]:
    """What the graph stores, by name."""
    return {t.name: t._values for t in graph.tensors().values() if isinstance(t, gs.Constant)}
