"""What may be asked of the precision stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from slimdeploy.errors import InputError

Precision = Literal["fp16", "bf16", "int8", "fp8"]
Rest = Literal["fp16", "bf16", "fp32"]
Part = Literal["attention", "embedding", "head"]

OLDEST_OPSET = {"fp16": 13, "bf16": 13, "int8": 19, "fp8": 19}
"""The opset from which a graph can be written in a precision; int8 with a float32 rest: 13."""


@dataclass(frozen=True)
class PrecisionOptions:
    """How a float32 graph is written in less.

    Attributes:
        precision: fp16 and bf16 cast; int8 and fp8 (E4M3) quantise the products with weights.
        rest: of int8 and fp8: what is left. "fp32" is for ONNX Runtime on the CPU, which has no
            kernels for half precision: activations become uint8 around 128 (the same numbers as
            int8 around 0, faster there), selections work on 8 bits and a Gemm's bias is int32.
            TensorRT takes none of these; a float32 rest would also cost it its fused attention.
        also: what is quantised beside the products of the blocks: the products of attention, the
            patch embedding, the head.
        leave: names of products that are not quantised.
        keep_float32: names of nodes that are not cast.
        least_rows: products of fewer rows an image are not quantised: kernels work on tiles of 16
            rows, so that little is gained, and a block that only serves the class token has all
            its error in that one row.
    """

    precision: Precision
    rest: Rest = "fp16"
    also: tuple[Part, ...] = ()
    leave: tuple[str, ...] = ()
    keep_float32: tuple[str, ...] = ()
    least_rows: int = 16

    def __post_init__(self) -> None:
        _check("--precision", self.precision, get_args(Precision))
        _check("--rest", self.rest, get_args(Rest))
        for part in self.also:
            _check("--also", part, get_args(Part))
        if not self.quantised and (self.also or self.leave):
            raise InputError(f"--also and --leave go with int8 and fp8, not {self.precision}")

    @property
    def quantised(self) -> bool:
        """Whether Q/DQ pairs are placed, for which ranges are needed."""
        return self.precision in ("int8", "fp8")

    @property
    def low(self) -> Rest:
        """The float type of what is neither quantised nor kept in float32."""
        if self.precision == "fp16" or self.precision == "bf16":
            return self.precision
        return self.rest

    @property
    def on_cpu(self) -> bool:
        """Whether Q/DQ are placed for ONNX Runtime's CPU kernels."""
        return self.precision == "int8" and self.rest == "fp32"

    @property
    def oldest_opset(self) -> int:
        """The opset from which the graph can be written so."""
        return 13 if self.on_cpu else OLDEST_OPSET[self.precision]


def _check(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{flag} {value}: is none of {', '.join(known)}")
