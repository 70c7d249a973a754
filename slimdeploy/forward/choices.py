"""Names a user chooses from; light, so that `--help` knows them on any machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from slimdeploy.errors import InputError

if TYPE_CHECKING:
    from slimdeploy.schedule import ModelGeometry

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


def require_readers(impact: str, geometry: ModelGeometry) -> None:
    """Refuse to rank by the class token's attention where there is no such token.

    Raises:
        InputError: naming the model.
    """
    if impact == "class-attention" and not geometry.head_reads:
        raise InputError(
            f"--impact class-attention: {geometry.name} pools over its tokens, none is the class; "
            "choose another --impact"
        )
