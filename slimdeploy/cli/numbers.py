"""Numbers on the command line: their bounds hold before a file is read or anything downloaded."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter, validators

Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
"""How many of something there must be at least one of."""

OptionalCount = Annotated[int | None, Parameter(validator=validators.Number(gte=1))]
"""The same where leaving it out means something of its own."""

Seed = Annotated[int, Parameter(validator=validators.Number(gte=0))]
"""Of random choices; NumPy's generators take none below zero."""
