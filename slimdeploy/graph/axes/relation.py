"""The vocabulary of axis relations: what an operator does to an axis that runs over tokens.

A `Relation` says of one node along which of its input axes each output axis runs, one for one.
Everything that moves a selection (towards the inputs) or a token count (towards the outputs) asks
only this, so an operator is described once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = tuple[int, ...]
"""Positions along one axis of the dense graph, ascending."""

Shape = tuple[int, ...]
"""Concrete sizes; a negative size -k stands for k times the batch."""


class Port(NamedTuple):
    """Axis `axis` of a node's input or output number `operand`."""

    operand: int
    axis: int


@dataclass(frozen=True)
class Op:
    """A node as the rules see it: no names, only what it computes.

    `inputs` and `outputs` hold shapes; `values` the inputs that are known numbers, else None.
    An omitted optional input has shape () and value None.
    """

    kind: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    values: tuple[NDArray[Any] | None, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def axis(self, default: int, rank: int) -> int:
        """The attribute `axis`, counted from the front."""
        return int(self.attrs.get("axis", default)) % rank

    def numbers(self, index: int, attribute: str = "") -> list[int] | None:
        """A list of integers given as input `index` or, in older opsets, as an attribute."""
        if attribute in self.attrs:
            return [int(value) for value in self.attrs[attribute]]
        value = self.values[index] if index < len(self.values) else None
        return None if value is None else [int(number) for number in np.ravel(value)]


@dataclass(frozen=True)
class Link:
    """Output axis `output` runs along input axis `input`.

    `source[j]` is the input position that output position j comes from, -1 if from another input;
    None means j itself. `mixes` is None where selecting along the output axis is the same as
    selecting along the input axis; otherwise it says why the whole axis is needed all the same.
    """

    output: Port
    input: Port
    source: Ids | None = None
    mixes: str | None = None

    def position(self, j: int) -> int:
        """The input position that output position `j` reads, -1 if none."""
        return j if self.source is None else self.source[j]


@dataclass(frozen=True)
class Relation:
    """All that a node does to axes.

    `contracted` lists groups of input axes that are summed over together (the keys' axis of the
    attention weights and of V). `reads` are input axes of which fixed positions are picked and
    that then vanish. `pools` are input axes along which the node takes a mean, weighted or not,
    so that of fewer positions it is the same function of a smaller set. `why` explains what
    happens to an axis that nothing mentions.
    """

    links: tuple[Link, ...] = ()
    contracted: tuple[tuple[Port, ...], ...] = ()
    reads: tuple[tuple[Port, Ids], ...] = ()
    pools: tuple[Port, ...] = ()
    why: str = "the axis does not survive it"

    def of_output(self, port: Port) -> list[Link]:
        """The links that output axis `port` takes part in."""
        return [link for link in self.links if link.output == port]

    def of_input(self, port: Port) -> list[Link]:
        """The links that input axis `port` takes part in."""
        return [link for link in self.links if link.input == port]

    def group_of(self, port: Port) -> tuple[Port, ...]:
        """The contraction that input axis `port` takes part in, or ()."""
        return next((group for group in self.contracted if port in group), ())

    def read_of(self, port: Port) -> Ids | None:
        """The positions picked along input axis `port`, or None."""
        return next((ids for read, ids in self.reads if read == port), None)


def opaque(why: str) -> Relation:
    """No axis passes; `why` is shown to whoever needed one to."""
    return Relation(why=why)
