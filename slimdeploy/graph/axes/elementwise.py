"""Operators that work element by element, or along an axis without changing the shape."""

from __future__ import annotations

from slimdeploy.graph.axes.relation import Link, Op, Port, Relation, Shape

_NAMES = (
    "Abs Acos Add And Asin Atan BitShift Cast CastLike Ceil Celu Clip Cos Cosh Div Dropout Elu "
    "Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN "
    "LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal "
    "Relu Round Selu Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh "
    "ThresholdedRelu Where Xor"
)
ELEMENTWISE = frozenset(_NAMES.split())


def broadcast_links(inputs: tuple[Shape, ...], output: Shape) -> tuple[Link, ...]:
    """Links of operands aligned from the right; an axis that is stretched from 1 has none."""
    return tuple(
        Link(Port(0, axis + len(output) - len(shape)), Port(index, axis))
        for index, shape in enumerate(inputs)
        for axis, size in enumerate(shape)
        if size == output[axis + len(output) - len(shape)]
    )


def elementwise(op: Op) -> Relation:
    """`y = f(a, b, ...)` with broadcasting: every axis passes."""
    return Relation(links=broadcast_links(op.inputs, op.outputs[0]))


def softmax(op: Op) -> Relation:
    """Softmax and its kin: every axis passes, but the one it normalises is needed whole."""
    along = op.axis(-1, len(op.inputs[0]))
    links = _same_shape_links(op, {along}, "it normalises along that axis")
    return Relation(links, pools=(Port(0, along),))


def normalization(op: Op) -> Relation:
    """LayerNormalization: the axes from `axis` on are needed whole, those before it pass."""
    rank = len(op.inputs[0])
    normalised = set(range(op.axis(-1, rank), rank))
    return Relation(_same_shape_links(op, normalised, "it normalises over that axis"))


def quantization(op: Op) -> Relation:
    """QuantizeLinear and DequantizeLinear: every axis passes, but one with a scale for each place.

    The places of such an axis, and blocks of places, must not be parted from their scales.
    """
    scale = op.inputs[1]
    along = {op.axis(1, len(op.inputs[0]))} if len(scale) == 1 and scale[0] != 1 else set()
    if len(scale) > 1:
        along = set(range(len(op.inputs[0])))
    return Relation(_same_shape_links(op, along, "each place on that axis has its own scale"))


def _same_shape_links(op: Op, mixed: set[int], why: str) -> tuple[Link, ...]:
    return tuple(
        Link(Port(index, axis), Port(0, axis), mixes=why if axis in mixed else None)
        for index, shape in enumerate(op.outputs)
        for axis, size in enumerate(shape)
        if size == op.inputs[0][axis]
    )


RULES = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantization),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), normalization),
}
