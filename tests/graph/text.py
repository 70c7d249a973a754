"""Graphs as ONNX text, and back as lines that a reader can compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray

from slimdeploy.graph.work import Work


def model(
    signature: str, body: str, opset: int = 18, **constants: NDArray[Any] | list[int] | int
) -> onnx.ModelProto:
    """A model from `inputs => outputs` and its nodes; `constants` become initialisers."""
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g ({signature.replace("=>", ") => (")})'
    parsed = onnx.parser.parse_model(f"{text} {{ {body} }}")
    for name, value in constants.items():
        array = np.asarray(value)
        parsed.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return parsed


def lines(source: Work | onnx.ModelProto) -> list[str]:
    """Each node as `y = Op(x, ...)`; small integer constants are shown by value."""
    exported = source.export() if isinstance(source, Work) else source
    shown = {
        tensor.name: str(onnx.numpy_helper.to_array(tensor).tolist())
        for tensor in exported.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64
    }
    return [
        f"{', '.join(node.output)} = {node.op_type}"
        f"({', '.join(shown.get(name, name) for name in node.input)})"
        for node in exported.graph.node
    ]


def links(signature: str, body: str, opset: int = 18, **constants: Any) -> str:
    """How the last node of a text graph relates its axes, e.g. `y1=a1 y2=b0[1,2]! | sums a2,b1`.

    `y1=a1`: axis 1 of y runs along axis 1 of a; `[...]` are the positions it takes, `!` marks an
    axis that is needed whole. What is summed over or picked follows; a reason is not shown.
    """
    work = Work.of(model(signature, body, opset, **constants))
    node = work.graph.nodes[-1]
    relation = work.relation(node)
    inputs = [tensor.name for tensor in node.inputs]
    words = [
        f"{node.outputs[link.output.operand].name}{link.output.axis}"
        f"={inputs[link.input.operand]}{link.input.axis}"
        + ("" if link.source is None else str(list(link.source)).replace(" ", ""))
        + ("!" if link.mixes else "")
        for link in relation.links
    ]
    for group in relation.contracted:
        words.append("| sums " + ",".join(f"{inputs[p.operand]}{p.axis}" for p in group))
    for port, ids in relation.reads:
        words.append(f"| reads {inputs[port.operand]}{port.axis}{list(ids)}")
    return " ".join(words)


def reason(signature: str, body: str, opset: int = 18, **constants: Any) -> str:
    """Why the last node of a text graph stops an axis."""
    work = Work.of(model(signature, body, opset, **constants))
    return work.relation(work.graph.nodes[-1]).why
