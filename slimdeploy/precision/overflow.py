"""What float16 cannot hold, found by running the float32 graph before it is cast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slimdeploy.errors import GateError
from slimdeploy.graph.work import Node, Work, is_constant
from slimdeploy.precision.calibration import Calibration
from slimdeploy.precision.cast_low import FLOAT
from slimdeploy.precision.observe import Progress, observe
from slimdeploy.precision.roles import LARGEST, Role, roles
from slimdeploy.precision.streams import source


@dataclass(frozen=True)
class Overflow:
    """A tensor that gets too large, what computes it, and the largest absolute value seen."""

    tensor: str
    node: str
    op: str
    largest: float

    def __str__(self) -> str:
        return (
            f"tensor '{self.tensor}' of node '{self.node}' ({self.op}) reaches {self.largest:.4g}"
        )


@dataclass(frozen=True)
class Scan:
    """What a scan found: how many tensors it looked at, the largest number, what overflows."""

    tensors: int
    largest: float
    largest_tensor: str
    overflows: tuple[Overflow, ...]

    def require(self) -> None:
        """Stop if anything overflows.

        Raises:
            GateError: naming the first tensor, and the way round.
        """
        if not self.overflows:
            return
        first, more = self.overflows[0], len(self.overflows) - 1
        others = f", and {more} more do" if more else ""
        raise GateError(
            f"{first}, beyond float16's 65504{others}: use --precision bf16, or keep such nodes in "
            "float32 with --keep-float32 overflow"
        )


def scan(
    work: Work,
    images: Calibration,
    keep: Sequence[str] = (),
    progress: Progress | None = None,
    threads: int | None = None,
) -> Scan:
    """Look at every tensor that `CastLow` would store in float16.

    Tensors that come out of moves are those that went in, and are not looked at again.

    Raises:
        GateError: if a tensor holds NaN or infinity.
    """
    makers = _stored_low(work, roles(work, "fp16", keep))
    largest = dict.fromkeys(makers, 0.0)
    for name, array in observe(work, list(makers), images, progress, threads):
        largest[name] = max(largest[name], float(np.abs(array).max(initial=0.0)))
    top = max(largest, key=largest.__getitem__, default="")
    beyond = [name for name, value in largest.items() if value > LARGEST["fp16"]]
    found = [Overflow(n, makers[n].name or n, makers[n].op, largest[n]) for n in beyond]
    return Scan(len(makers), largest.get(top, 0.0), top, tuple(found))


def _stored_low(work: Work, role: Mapping[int, Role]) -> dict[str, Node]:
    """Tensors that half precision would have to hold, each with the node that computes it.

    A node in half precision reads and writes it; what it reads is cast, whatever computes it.
    """
    makers: dict[str, Node] = {}
    for node in work.graph.nodes:
        if role[id(node)] == "low":
            read = [source(tensor) for tensor in node.inputs if not is_constant(tensor)]
            for tensor in (*read, *node.outputs):
                if work.facts.types.get(tensor.name) == FLOAT and tensor.inputs:
                    makers[tensor.name] = tensor.inputs[0]
    return makers


def nodes_to_keep(work: Work, overflows: Sequence[Overflow]) -> tuple[str, ...]:
    """Names of the nodes that must keep float32: what computes such a tensor, and what reads it."""
    names = {overflow.tensor for overflow in overflows}
    kept = [
        node
        for node in work.graph.nodes
        if any(tensor.name in names for tensor in node.outputs)
        or any(source(tensor).name in names for tensor in node.inputs if not is_constant(tensor))
    ]
    return tuple(str(node.outputs[0].name) for node in kept)
