"""What must hold of any model before its graph can be worked on, whoever made it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

from slimdeploy.errors import GraphError, one_line

OWN_DOMAINS = ("", "ai.onnx")

_KIND = onnx.AttributeProto
_ATTRIBUTES = frozenset(
    (_KIND.FLOAT, _KIND.INT, _KIND.STRING, _KIND.TENSOR, _KIND.FLOATS, _KIND.INTS, _KIND.STRINGS)
)


def check_source(model: onnx.ModelProto) -> None:
    """Refuse what the rest of the graph stage could misread: it goes by names and types.

    Raises:
        GraphError: if the model lacks inputs, outputs or their types, names a tensor twice,
            reads one that nothing makes, or holds what no pass understands.
    """
    _check_text(model)
    _check_opsets(model)
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise GraphError(f"tensor '{name}' is stored sparsely; store it densely")
    for node in model.graph.node:
        _check_attributes(node)
    _check_ends(model.graph)
    _check_names(model.graph)


def check_nodes(model: onnx.ModelProto) -> None:
    """Let onnx check every node: its operator, its attributes, the number of its inputs.

    Raises:
        GraphError: with onnx's message.
    """
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # onnx raises several unrelated types
        raise GraphError(f"onnx refuses the graph: {one_line(error)}") from error


def _check_text(message: Any) -> None:
    """Read every name once: in a damaged file it may be no text."""
    try:
        names = [tensor.name for tensor in getattr(message, "initializer", ())]
        for field, value in message.ListFields():
            if field.name in ("initializer", "sparse_initializer"):
                continue
            values = value if field.is_repeated else (value,)
            if field.message_type is not None:
                for inner in values:
                    _check_text(inner)
            elif field.type == field.TYPE_STRING:
                names += values
    except UnicodeDecodeError as error:
        raise GraphError(f"{_NO_TEXT} ({error.object[:40]!r})") from error
    for name in names:
        if not isinstance(name, str):  # how protobuf hands out what it cannot decode
            raise GraphError(f"{_NO_TEXT} ({name[:40]!r})")


_NO_TEXT = "a name in it is no text: the file is damaged, export again"


def _check_opsets(model: onnx.ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    seen = set()
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if domain in seen:
            raise GraphError(f"the opset of domain '{domain}' is given twice; export again")
        seen.add(domain)
        if not domain and entry.version > newest:
            raise GraphError(
                f"opset {entry.version} is newer than {newest}, the newest that the installed onnx "
                "knows: export with that one or install a newer onnx"
            )


def _check_ends(graph: onnx.GraphProto) -> None:
    if not graph.output:
        raise GraphError("the graph has no output")
    stored = {tensor.name for tensor in graph.initializer}
    fed = [value for value in graph.input if value.name not in stored]
    for value in (*fed, *graph.output):
        if not _is_type(value.type.tensor_type.elem_type):
            raise GraphError(f"'{value.name}', an input or output, is no tensor of a stated type")
    for value in fed:
        shape = value.type.tensor_type
        if not shape.HasField("shape"):
            raise GraphError(f"input '{value.name}' has no shape; export with a fixed image size")
        for axis, dim in enumerate(shape.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value < 1:
                raise GraphError(f"input '{value.name}' has size {dim.dim_value} on axis {axis}")


def _check_names(graph: onnx.GraphProto) -> None:
    made: set[str] = set()
    for name, what in _made(graph):
        if name in made:
            raise GraphError(f"tensor '{name}' is made twice, again by {what}")
        made.add(name)
    for node in graph.node:
        for name in node.input:
            if name and name not in made:
                raise GraphError(f"{_label(node)} reads '{name}', which nothing makes")
    for output in graph.output:
        if not any(output.name in node.output for node in graph.node):
            raise GraphError(f"output '{output.name}' is made by no node")


def _made(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """Every tensor name where it is defined, and a phrase for the place."""
    stored = {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        yield tensor.name, "an initialiser"
    for value in graph.input:
        if value.name not in stored:
            yield value.name, "an input"
    for node in graph.node:
        for name in node.output:
            if name:
                yield name, _label(node)


def _check_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type in (_KIND.GRAPH, _KIND.GRAPHS):
            raise GraphError(f"{_label(node)}: holds a subgraph, which no pass looks into")
        whole = attribute.type != _KIND.TENSOR or _is_type(attribute.t.data_type)
        if attribute.type not in _ATTRIBUTES or attribute.ref_attr_name or not whole:
            raise GraphError(
                f"{_label(node)}: its attribute '{attribute.name}' is of a type that slimdeploy "
                "cannot carry over"
            )


def _is_type(number: int) -> bool:
    return number != onnx.TensorProto.UNDEFINED and number in onnx.TensorProto.DataType.values()


def _label(node: onnx.NodeProto) -> str:
    name = node.name or next(iter(node.output), "")
    return f"node '{name}' ({node.op_type})"
