"""Attention probabilities of one block, as an output of a part of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from slimdeploy.errors import GraphError
from slimdeploy.forward.anatomy import BlockNames
from slimdeploy.forward.cut import Cutter
from slimdeploy.graph.masked.scores import Editor
from slimdeploy.store import Array

_PROBABILITIES = 3
"""`qk_matmul_output_mode`: an Attention operator gives what is behind its Softmax, too."""


def map_part(
    cutter: Cutter, block: BlockNames, tokens: int, visible: Sequence[int] | None = None
) -> tuple[onnx.ModelProto, str]:
    """A part from the stream entering `block` to its attention probabilities, and their name.

    Args:
        tokens: how many the block has.
        visible: ids of the keys that are left; None leaves all.

    Example (from x to p, with an Attention operator):
        before: y = Attention(q, k, v)
        after:  y, , , y.probabilities = Attention<qk_matmul_output_mode=3>(q, k, v)
    """
    part = cutter.cut([block.entering], [block.anchor])
    hide(part, block, tokens, visible)
    node = next(node for node in part.graph.node if block.anchor in node.output)
    if node.op_type == "Softmax":
        return part, block.anchor
    name = f"{block.anchor}.probabilities"
    attributes = [a for a in node.attribute if a.name != "qk_matmul_output_mode"]
    del node.attribute[:], node.output[1:]
    node.output.extend(["", "", name])
    node.attribute.extend(attributes)
    node.attribute.append(onnx.helper.make_attribute("qk_matmul_output_mode", _PROBABILITIES))
    kind = part.graph.output[0].type.tensor_type.elem_type
    del part.graph.output[:]
    part.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, [None] * 4))
    return part, name


def stream_part(
    cutter: Cutter, block: BlockNames, end: str, tokens: int, visible: Sequence[int] | None
) -> onnx.ModelProto:
    """A part from the stream entering `block` to its tensor `end`, with only some keys visible."""
    part = cutter.cut([block.entering], [end])
    hide(part, block, tokens, visible)
    return part


def hide(
    part: onnx.ModelProto, block: BlockNames, tokens: int, visible: Sequence[int] | None
) -> None:
    """Keep the attention of `block` in `part` from all keys that are not visible."""
    if visible is not None and len(visible) < tokens:
        Editor(part).hide_keys(block.anchor, list(visible), tokens, tokens)


def per_head(maps: Array, images: int) -> NDArray[np.float32]:
    """Probabilities as [B, heads, N, N], however the graph lays heads out."""
    if maps.ndim < 3 or maps.size == 0:
        raise GraphError(f"attention probabilities of shape {list(maps.shape)} are not understood")
    return maps.reshape(images, -1, *maps.shape[-2:]).astype(np.float32, copy=False)
