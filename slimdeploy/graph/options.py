"""What a caller may choose of a graph beside the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from slimdeploy.errors import InputError

Select = Literal["gather", "slice", "slice-concat", "one-hot"]
InputLayout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class GraphOptions:
    """How the graph is written. The defaults change nothing but the tokens.

    Attributes:
        select: how a selection of tokens is written: a Gather of constant indices; one
            permutation of the tokens at the input and prefixes after it; a Slice for every run of
            neighbours, joined by Concat; a product with a constant one-hot matrix (exact for finite
            values; an infinite one would spoil its neighbours).
        optimize: apply the rewrites that compute the same with less work (`graph/optimize/`).
        forbid_ops: operators that must not be in the result, as ("Gather",).
        fixed_batch: write this batch size into the graph.
        input_layout: nhwc takes images as [B, H, W, C]; nchw leaves them as they are.
        prefix_blocks: end the graph after this many blocks, with the residual stream as its
            output: a probe for compilers.
        pool_kept: let a head that pools over all tokens pool over those that are kept. That is
            another function than the dense model's, so it has to be asked for.
    """

    select: Select = "gather"
    optimize: bool = False
    forbid_ops: tuple[str, ...] = ()
    fixed_batch: int | None = None
    input_layout: InputLayout = "nchw"
    prefix_blocks: int | None = None
    pool_kept: bool = False

    def __post_init__(self) -> None:
        for name, known in (("select", get_args(Select)), ("input_layout", get_args(InputLayout))):
            value = getattr(self, name)
            if value not in known:
                raise InputError(
                    f"--{name.replace('_', '-')} {value}: is none of {', '.join(known)}"
                )
        for name in ("fixed_batch", "prefix_blocks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")
