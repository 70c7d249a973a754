"""Hide keys from one attention node of an ONNX file, by adding to its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from slimdeploy.errors import GraphError
from slimdeploy.graph.probes import element_type, tensor_types

_HIDDEN = -1e30
_HIDDEN_HALF = -3e4  # half precision ends at -65504, and a sum with real scores must not overflow


class Editor:
    """Inserts nodes and constants into the graph of `model`, in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.types = tensor_types(model)
        ends = (*model.graph.input, *model.graph.output, *model.graph.initializer)
        self._names = {value.name for value in ends}
        self._names |= {name for node in model.graph.node for name in (*node.output, node.name)}

    def producer(self, name: str) -> onnx.NodeProto:
        """The node that computes tensor `name`, which must be computed."""
        found: onnx.NodeProto = next(node for node in self.graph.node if name in node.output)
        return found

    def insert(self, before: onnx.NodeProto, op: str, inputs: list[str], **attrs: Any) -> str:
        """Put a node in front of another; returns the name of its only output."""
        name = self.fresh(f"masked.{before.output[0]}.{op}")
        place = next(i for i, node in enumerate(self.graph.node) if node is before)
        self.graph.node.insert(place, onnx.helper.make_node(op, inputs, [name], name, **attrs))
        return name

    def constant(self, stem: str, values: NDArray[Any], kind: int | None = None) -> str:
        """A new constant of element type `kind` (that of `values` if None); its name."""
        name = self.fresh(f"masked.{stem}")
        if kind is None:
            tensor = onnx.numpy_helper.from_array(values, name)
        else:
            tensor = onnx.helper.make_tensor(name, kind, values.shape, values.ravel().tolist())
        self.graph.initializer.append(tensor)
        return name

    def fresh(self, stem: str) -> str:
        """`stem`, numbered if something bears that name already."""
        name, number = stem, 0
        while name in self._names:
            number += 1
            name = f"{stem}.{number}"
        self._names.add(name)
        return name

    def hide_keys(self, anchor: str, visible: Sequence[int], queries: int, keys: int) -> None:
        """Let the Softmax or Attention node that computes `anchor` see these of its keys only.

        The mask of a Softmax has one entry per key, so it fits scores of any rank. Masks that the
        graph has stay: this one is added to them.

        Raises:
            GraphError: if the node limits its scores after masking them, or its type is unknown.
        """
        node = self.producer(anchor)
        if node.op_type == "Softmax":
            mask = self._additive(anchor, visible, keys, element_type(self.types, anchor))
            node.input[0] = self.insert(node, "Add", [node.input[0], mask])
            return
        if any(item.name == "softcap" and item.f for item in node.attribute):
            raise GraphError(
                f"node '{node.name or anchor}' (Attention): softcap limits what a mask can hide; "
                "export the model with attention as MatMul and Softmax"
            )
        self._mask_operator(node, visible, queries, keys)

    def _mask_operator(
        self, node: onnx.NodeProto, visible: Sequence[int], queries: int, keys: int
    ) -> None:
        anchor = node.output[0]
        given = node.input[3] if len(node.input) > 3 else ""
        if given and element_type(self.types, given) == onnx.TensorProto.BOOL:
            seen = self.constant(f"{anchor}.visible", np.isin(np.arange(keys), visible))
            mask = self.insert(node, "And", [given, seen])
        elif given:
            hidden = self._additive(anchor, visible, keys, element_type(self.types, given))
            mask = self.insert(node, "Add", [given, hidden])
        else:  # ONNX Runtime wants a row for each query
            kind = element_type(self.types, node.input[0])
            mask = self._additive(anchor, visible, keys, kind, rows=queries)
        del node.input[3:4]
        node.input.insert(3, mask)

    def _additive(
        self, stem: str, visible: Sequence[int], keys: int, kind: int, rows: int = 0
    ) -> str:
        """0 for each visible key and a very low number for each other, [keys] or [rows, keys]."""
        low = _HIDDEN_HALF if kind == onnx.TensorProto.FLOAT16 else _HIDDEN
        mask = np.where(np.isin(np.arange(keys), visible), 0.0, low)
        if rows:
            mask = np.broadcast_to(mask, (rows, keys))
        return self.constant(f"{stem}.hidden_keys", mask, kind)
