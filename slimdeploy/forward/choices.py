"""Names a user chooses from; light, so that `--help` knows them on any machine."""

from __future__ import annotations

from typing import Literal, get_args

from slimdeploy.errors import InputError

ForwardImpact = Literal["grid", "centre", "random", "attention", "class-attention", "path", "cover"]


def require_forward(impact: str) -> ForwardImpact:
    """`impact`, if forward passes are enough for it.

    Raises:
        InputError: if they are not.
    """
    known: tuple[ForwardImpact, ...] = get_args(ForwardImpact)
    for name in known:
        if name == impact:
            return name
    raise InputError(f"--impact {impact}: needs --model; with --onnx choose {', '.join(known)}")
