"""The gate on operators that a target's compiler does not take."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import onnx

from slimdeploy.errors import GateError, InputError
from slimdeploy.graph.options import Select


def check_names(forbidden: Sequence[str], model: onnx.ModelProto) -> None:
    """Refuse names that are neither ONNX operators nor used in `model`.

    Raises:
        InputError: with the names that come close.
    """
    if not forbidden:
        return
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    known |= {node.op_type for node in model.graph.node}
    for name in forbidden:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), 3, 0.6)
            by_case = [other for other in sorted(known) if other.lower() == name.lower()]
            hint = f": did you mean {' or '.join(by_case or close)}?" if by_case or close else ""
            raise InputError(f"--forbid-op {name}: there is no such operator{hint}")


def check_absent(
    forbidden: Sequence[str], model: onnx.ModelProto, dense: onnx.ModelProto, select: Select
) -> None:
    """The gate: none of the operators is left in `model`, made from `dense` in the form `select`.

    Raises:
        GateError: with each that is left, how many, the first node's name and where it comes from.
    """
    left = [op for op in dict.fromkeys(forbidden) if any(n.op_type == op for n in model.graph.node)]
    if left:
        remarks = [_remark(op, model, dense) for op in left]
        remedies = [f"; {_REMEDIES[select][op]}" for op in left if op in _REMEDIES[select]]
        raise GateError(f"forbidden operators are left: {', '.join(remarks)}{''.join(remedies)}")


def _remark(op: str, model: onnx.ModelProto, dense: onnx.ModelProto) -> str:
    nodes = [node for node in model.graph.node if node.op_type == op]
    own = {name for node in dense.graph.node if node.op_type == op for name in node.output}
    origin = "of the dense graph" if own.intersection(nodes[0].output) else "added to it"
    reads = f"reads '{nodes[0].input[0]}', " if nodes[0].input else ""
    name = nodes[0].name or nodes[0].output[0]
    return f"{len(nodes)} {op} (the first, '{name}', {reads}{origin})"


_BY_SLICES = {
    "Slice": "--select one-hot writes no Slice",
    "Concat": "--select one-hot adds no Concat",
}
_REMEDIES: dict[Select, dict[str, str]] = {
    "gather": {"Gather": "--select slice, slice-concat or one-hot writes no Gather"},
    "slice": _BY_SLICES,
    "slice-concat": _BY_SLICES,
    "one-hot": {},
}
