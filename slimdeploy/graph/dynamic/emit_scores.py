"""The nodes that score the tokens which enter a block, and take the best."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from slimdeploy.dynamic import STANDARDISE_EPSILON
from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph.work import Tensor, Work

_LAYER_NORM_OPSET = 17
_AXES_AS_INPUT_OPSET = 18
_ABOVE_BOUNDED, _ABOVE_HALF, _ABOVE_ALL = 2e4, 6e4, 3e38
"""More than any score: of a bounded scorer, in half precision, and in the rest."""


def predictor_scores(work: Work, x: Tensor, stem: str, weight: tuple[float, ...]) -> Tensor:
    """w · x̂ of every token, [B, k] from [B, k, D]."""
    column = work.constant(
        f"{stem}.weight", np.asarray(weight, stream_type(work, x).numpy)[:, None]
    )
    tokens = standardised(work, x, f"{stem}.standardised")
    product = work.add("MatMul", f"{stem}.product", [tokens, column])
    return work.add("Squeeze", f"{stem}.score", [product, int64(work, f"{stem}.axis", [2])])


def standardised(work: Work, x: Tensor, stem: str) -> Tensor:
    """x̂: tokens [B, k, D] with mean 0 and variance 1 over their channels.

    Raises:
        InputError: for an opset without LayerNormalization.
    """
    if opset(work) < _LAYER_NORM_OPSET:
        raise InputError(
            f"opset {opset(work)}: predictor and merge need {_LAYER_NORM_OPSET} or later; export "
            "with a later opset, or choose by key-norm or token-norm"
        )
    width = work.facts.shape(x.name)[-1]
    ones = work.constant(f"{stem}.scale", np.ones(width, stream_type(work, x).numpy))
    return work.add("LayerNormalization", stem, [x, ones], axis=-1, epsilon=STANDARDISE_EPSILON)


def squared_norms(work: Work, tensor: Tensor, stem: str, axis: int, rank: int) -> Tensor:
    """Sum of squares over all axes but the batch and the token axis, [B, k]."""
    axes = [i for i in range(1, rank) if i != axis]
    if opset(work) < _AXES_AS_INPUT_OPSET:
        return work.add("ReduceSumSquare", f"{stem}.score", [tensor], axes=axes, keepdims=0)
    inputs = [tensor, int64(work, f"{stem}.axes", axes)]
    return work.add("ReduceSumSquare", f"{stem}.score", inputs, keepdims=0)


def best_rows(
    work: Work,
    scores: Tensor,
    stem: str,
    sizes: tuple[int, int, int],
    type_: int,
    bounded: bool = False,
) -> tuple[Tensor, str]:
    """Rows of the best tokens for GatherND, [B, count, 1], and the name of the same as [B, count].

    Args:
        sizes: how many tokens are kept, of how many, and how many prefix tokens come first.
        type_: element type of the scores, in onnx's numbers.
        bounded: whether no score comes near the end of half precision; then the nodes can be
            brought into it later.
    """
    count, held, prefix = sizes
    dtype = onnx.helper.tensor_dtype_to_np_dtype(type_)
    half = type_ == onnx.TensorProto.FLOAT16
    largest = _ABOVE_BOUNDED if bounded else _ABOVE_HALF if half else _ABOVE_ALL
    mask, always = np.zeros((1, held), bool), np.zeros((1, held), dtype)
    mask[:, :prefix] = True
    always[:, :prefix] = np.linspace(largest, largest / 2, prefix)  # falling: they keep their order
    operands = [work.constant(f"{stem}.prefix", mask), work.constant(f"{stem}.first", always)]
    ranked = work.add("Where", f"{stem}.ranked", [*operands, scores])
    values = gs.Variable(work.fresh(f"{stem}.best"), dtype=dtype)
    index = gs.Variable(work.fresh(f"{stem}.rows"), dtype=np.int64)
    attrs: dict[str, Any] = {"axis": 1, "largest": 1, "sorted": 1}
    inputs = [ranked, int64(work, f"{stem}.count", [count])]
    work.graph.nodes.append(gs.Node("TopK", index.name, attrs, inputs, [values, index]))
    rows = work.add("Unsqueeze", f"{stem}.rows_nd", [index, int64(work, f"{stem}.last_axis", [2])])
    return rows, index.name


def require_tokens(work: Work, x: Tensor, axis: int) -> None:
    """Refuse a stream that is not [B, tokens, channels].

    Raises:
        GraphError: with its shape.
    """
    shape = work.facts.shape(x.name)
    if axis != 1 or len(shape) != 3:
        raise GraphError(
            f"tensor '{x.name}' has shape {list(shape)} with its tokens along axis {axis}: patches "
            "can be chosen per image of a stream [batch, tokens, channels] only"
        )


def opset(work: Work) -> int:
    """The version of ONNX's own operators that the graph is written in."""
    versions = work.origin.opset_import
    return next(int(entry.version) for entry in versions if entry.domain in ("", "ai.onnx"))


class ElementType(NamedTuple):
    """An element type: its number in ONNX, and numpy's."""

    number: int
    numpy: Any


def stream_type(work: Work, tensor: Tensor) -> ElementType:
    """The element type of a tensor of the dense graph."""
    number = int(work.facts.types[tensor.name])
    return ElementType(number, onnx.helper.tensor_dtype_to_np_dtype(number))


def int64(work: Work, stem: str, values: list[int]) -> Tensor:
    """A constant of whole numbers, as operators take them for axes and bounds."""
    return work.constant(stem, np.asarray(values, np.int64))
