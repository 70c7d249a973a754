"""Quantisation written into the graph: QuantizeLinear and DequantizeLinear around products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import InputError
from slimdeploy.graph.files.external import Array
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.work import Tensor, Work, is_constant, node_error, producer
from slimdeploy.precision.cast_low import NUMPY_TYPES
from slimdeploy.precision.options import PrecisionOptions
from slimdeploy.precision.products import Product, chosen
from slimdeploy.precision.streams import source

_PASSED = frozenset(("Gather", "Reshape", "Transpose"))
"""Moves that ONNX Runtime makes on 8 bits, a quarter of the bytes."""
_LARGEST_BIAS = float(1 << 30)
"""In steps of the sum: half of what int32 holds, for the products are added to it."""


@dataclass(frozen=True)
class Grid:
    """The numbers that 8 bits hold: `largest` of either sign, on both sides of `zero`."""

    type: Any
    largest: float
    zero: int = 0


INT8 = Grid(np.int8, 127.0)
UINT8 = Grid(np.uint8, 127.0, 128)
FP8 = Grid(ml_dtypes.float8_e4m3fn, 448.0)


class InsertQdq(Pass):
    """Quantise the chosen products: weights for each output channel, activations as a whole.

    Everything is symmetric, so that a product needs no correction for zero points. A pair stands
    right at the product, behind selections and changes of shape, where TensorRT fuses it with the
    kernel before; the scales are numbers of the type that is computed in. Weights are stored in 8
    bits. What is between the pairs is float32 here; `CastLow` takes it from there.

    Example:
        before: y = MatMul(h, w)
        after:  y = MatMul(DequantizeLinear(QuantizeLinear(h, s), s), DequantizeLinear(w8, t))
    """

    def __init__(self, options: PrecisionOptions, thresholds: Mapping[str, float]) -> None:
        self.options = options
        self.thresholds = thresholds
        self.weights = FP8 if options.precision == "fp8" else INT8
        self.activations = UINT8 if options.on_cpu else self.weights
        self.done: list[str] = []
        self._quantised: dict[str, Tensor] = {}
        self._pairs: dict[str, Tensor] = {}

    def requires(self, work: Work) -> None:
        for product in chosen(work, self.options):
            for tensor in product.read():
                self._scale_of(tensor)

    def call(self, work: Work) -> None:
        self._quantised, self._pairs, self.done = {}, {}, []
        for product in chosen(work, self.options):
            self.done.append(product.name)
            scales = [self._scale_of(tensor) for tensor in product.read()]
            for index, tensor in enumerate(product.read()):
                product.node.inputs[index] = self._pair(work, tensor)
            if product.axis is not None:
                self._store(work, product, product.axis, scales[0])
        if not self.done:
            raise InputError("no product with stored weights is left to quantise: check --leave")

    def ensures(self, work: Work) -> None:
        done = set(self.done)
        for node in work.graph.nodes:
            if (node.name or node.outputs[0].name) in done:
                makers = [producer(tensor) for tensor in node.inputs[:2]]
                if any(maker is None or maker.op != "DequantizeLinear" for maker in makers):
                    raise node_error(node, "was to be quantised and is not")

    def _scale_of(self, tensor: Tensor) -> NDArray[np.float32]:
        name = source(tensor).name
        if name not in self.thresholds:
            raise InputError(f"no range for tensor '{name}': collect the ranges of this file anew")
        largest = np.asarray(self.thresholds[name], np.float32)
        return step(largest, self.activations.largest, self.options.low)

    def _pair(self, work: Work, tensor: Tensor) -> Tensor:
        """`tensor` as a product reads it: quantised and dequantised."""
        if tensor.name not in self._pairs:
            parts = self._parameters(work, tensor, "dequantize")
            held = [self._eight_bits(work, tensor), *parts]
            stem = f"{tensor.name}.dequantized"
            self._pairs[tensor.name] = work.add("DequantizeLinear", stem, held)
        return self._pairs[tensor.name]

    def _eight_bits(self, work: Work, tensor: Tensor) -> Tensor:
        """`tensor` quantised; on the CPU what only moves numbers does so on 8 bits."""
        if tensor.name in self._quantised:
            return self._quantised[tensor.name]
        maker, stem = producer(tensor), f"{tensor.name}.quantized"
        if self.options.on_cpu and maker is not None and maker.op in _PASSED:
            inputs = [self._eight_bits(work, maker.inputs[0]), *maker.inputs[1:]]
            made = work.add(maker.op, stem, inputs, **maker.attrs)
        else:
            parts = self._parameters(work, tensor, "quantize")
            made = work.add("QuantizeLinear", stem, [tensor, *parts])
        self._quantised[tensor.name] = made
        return made

    def _parameters(self, work: Work, tensor: Tensor, use: str) -> list[Tensor]:
        """Scale and zero point; each use has its own, for the two may end up in other types."""
        grid = self.activations
        return [
            work.constant(f"{tensor.name}.{use}.scale", self._scale_of(tensor)),
            work.constant(f"{tensor.name}.{use}.zero", np.asarray(grid.zero).astype(grid.type)),
        ]

    def _store(self, work: Work, product: Product, axis: int, scale: NDArray[np.float32]) -> None:
        """Store the weights in 8 bits and, on the CPU, a Gemm's bias in 32; `scale` of its input.

        A weight step is never so small that the bias, counted in steps of the sum, would not fit.
        """
        bias = _bias(product, axis) if self.options.on_cpu else None
        least = 0.0 if bias is None else np.abs(bias) / (scale * _LARGEST_BIAS)
        channels = self._weights(work, product, axis, least)
        if bias is not None:
            _integer_bias(work, product, bias, scale * channels)

    def _weights(
        self, work: Work, product: Product, axis: int, least: NDArray[np.float64] | float
    ) -> NDArray[np.float32]:
        """Store the weights in 8 bits; the scale of each channel, `least` or more."""
        tensor, grid = product.node.inputs[1], self.weights
        values = tensor.values
        others = tuple(i for i in range(values.ndim) if i != axis)
        largest = np.maximum(np.abs(values).max(axis=others), least * grid.largest)
        scales = step(largest, grid.largest, self.options.low)
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        held = [
            work.constant(
                f"{tensor.name}.quantized", on_grid(values / scales.reshape(shape), grid)
            ),
            work.constant(f"{tensor.name}.scale", scales),
            work.constant(f"{tensor.name}.zero", np.zeros(scales.shape, grid.type)),
        ]
        stem = f"{tensor.name}.dequantized"
        product.node.inputs[1] = work.add("DequantizeLinear", stem, held, axis=axis)
        return scales


def step(largest: NDArray[np.float32], steps: float, low: str) -> NDArray[np.float32]:
    """The distance of neighbours on a grid that reaches `largest` after `steps`.

    It is a number of the type `low`, rounded up so that nothing is cut off; 1 where all is zero,
    and float32 where it is beyond the type.
    """
    kind: Any = np.dtype(NUMPY_TYPES[low])
    exact = np.asarray(largest, np.float32) / np.float32(steps)
    with np.errstate(over="ignore"):
        rounded = exact.astype(kind)
        up = np.nextafter(rounded, kind.type(np.inf))
    result = np.where(rounded.astype(np.float32) < exact, up, rounded).astype(np.float32)
    result = np.where(np.isfinite(result), result, exact)
    return np.asarray(np.where(result > 0, result, np.float32(1)), np.float32)


def on_grid(values: Array, grid: Grid) -> Array:
    """`values`, in units of the step, as the nearest numbers that the grid holds."""
    clipped = np.clip(values, -grid.largest, grid.largest)
    return np.asarray((np.rint(clipped) if grid is not FP8 else clipped).astype(grid.type))


def _bias(product: Product, axis: int) -> NDArray[np.float64] | None:
    """A Gemm's stored bias, one number for each channel; None if it has none that is so."""
    node = product.node
    plain = node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0
    if node.op != "Gemm" or not plain or len(node.inputs) < 3 or not is_constant(node.inputs[2]):
        return None
    values = node.inputs[2].values
    if values.ndim > 1 and values.shape[0] != 1:
        return None  # a number for each row: the kernel adds none such
    channels = node.inputs[1].shape[axis]
    return np.broadcast_to(values.ravel(), (channels,)).astype(np.float64)


def _integer_bias(
    work: Work, product: Product, bias: NDArray[np.float64], scales: NDArray[np.float32]
) -> None:
    """A Gemm's bias in the steps of its sum, which ONNX Runtime's kernel adds to it as int32."""
    node = product.node
    tensor = node.inputs[2]
    held = [
        np.rint(bias / scales).astype(np.int32),
        scales,
        np.zeros(scales.shape, np.int32),
    ]
    stem = f"{tensor.name}.{product.name}"
    names = ("quantized", "scale", "zero")
    constants = [work.constant(f"{stem}.{n}", v) for n, v in zip(names, held, strict=True)]
    node.inputs[2] = work.add("DequantizeLinear", f"{stem}.dequantized", constants, axis=0)
