"""The gate on operators that a target's compiler does not take."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import onnx

from slimdeploy.errors import GateError, InputError


def check_names(forbidden: Sequence[str], model: onnx.ModelProto) -> None:
    """Refuse names that are neither ONNX operators nor used in `model`.

    Raises:
        InputError: with the names that come close.
    """
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    known |= {node.op_type for node in model.graph.node}
    for name in forbidden:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), 3, 0.6)
            by_case = [other for other in sorted(known) if other.lower() == name.lower()]
            hint = f": did you mean {' or '.join(by_case or close)}?" if by_case or close else ""
            raise InputError(f"--forbid-op {name}: there is no such operator{hint}")


def check_absent(forbidden: Sequence[str], model: onnx.ModelProto, dense: onnx.ModelProto) -> None:
    """The gate: none of the operators is left in `model`, which was made from `dense`.

    Raises:
        GateError: with each that is left, how many, the first node's name and who wrote it.
    """
    remarks = [remark for op in dict.fromkeys(forbidden) if (remark := _left(op, model, dense))]
    if remarks:
        raise GateError(f"forbidden operators are left: {'; '.join(remarks)}")


def _left(op: str, model: onnx.ModelProto, dense: onnx.ModelProto) -> str:
    nodes = [node for node in model.graph.node if node.op_type == op]
    if not nodes:
        return ""
    own = {name for node in dense.graph.node if node.op_type == op for name in node.output}
    first = nodes[0]
    origin = "comes from the dense graph" if own.intersection(first.output) else "was added"
    reads = f"which reads '{first.input[0]}' and " if first.input else "which "
    return f"{len(nodes)} {op}, first node '{first.name or first.output[0]}', {reads}{origin}"
