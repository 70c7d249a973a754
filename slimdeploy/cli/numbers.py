"""Numbers on the command line: their bounds hold before a file is read or anything downloaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token, validators

from slimdeploy.errors import InputError
from slimdeploy.slim.choices import Strength


def _whole(_: Any, tokens: Sequence[Token]) -> int:
    """Without this, 1.5 would be taken for 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value} is no whole number.") from None


Count = Annotated[int, Parameter(converter=_whole, validator=validators.Number(gte=1))]
"""How many of something there must be at least one of."""

OptionalCount = Annotated[
    int | None, Parameter(converter=_whole, validator=validators.Number(gte=1))
]
"""The same where leaving it out means something of its own."""

Seed = Annotated[int, Parameter(converter=_whole, validator=validators.Number(gte=0))]
"""Of random choices; NumPy's generators take none below zero."""

Natural = Seed
"""How many of something there may be none of."""


def _several(_: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
    """Several in a word, with commas between, or a word each."""
    words = [word for token in tokens for word in token.value.split(",") if word.strip()]
    try:
        return tuple(map(int, words))
    except ValueError:
        raise ValueError(f"{', '.join(words)}: give whole numbers with commas between.") from None


def _all_counted(_: Any, values: tuple[int, ...]) -> None:
    if any(value < 1 for value in values):
        raise ValueError("Each must be at least 1.")


Counts = Annotated[tuple[int, ...], Parameter(converter=_several, validator=_all_counted)]
"""Numbers of things, counted from one."""

OptionalSeed = Annotated[
    int | None, Parameter(converter=_whole, validator=validators.Number(gte=0))
]
"""The same where leaving it out means something of its own."""


def _not_nan(_: Any, value: float | None) -> None:
    if value is not None and math.isnan(value):
        raise ValueError("Must be a number.")


Limit = Annotated[float | None, Parameter(validator=_not_nan)]
"""What a gate allows; left out, there is no gate. NaN would let everything pass."""


def _finite(_: Any, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError("Must be at least 0 and finite.")


Seconds = Annotated[float, Parameter(validator=_finite)]
"""How long something goes on; NaN or infinity would never end."""


def _ridge(_: Any, tokens: Sequence[Token]) -> Strength:
    text = tokens[0].value
    try:
        strength: Strength = "auto" if text == "auto" else float(text)
    except ValueError:
        raise InputError(f"--ridge {text}: must be a number above 0, or auto") from None
    if strength != "auto" and not strength > 0:
        raise InputError(f"--ridge {strength}: must be above 0")
    return strength


Ridge = Annotated[Strength | None, Parameter(converter=_ridge)]
"""Strength of the refit's ridge; left out, it depends on who chooses the tokens."""
