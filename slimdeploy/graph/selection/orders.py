"""In which order each tensor holds its tokens once the residual stream is reordered.

Planned from the stream towards the outputs before anything is changed: which operands have to be
reordered to match, which picks move, and what would come to mean something else and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slimdeploy.errors import InputError
from slimdeploy.graph.axes import Ids, Link, Port, Relation
from slimdeploy.graph.axes.layout import REDUCTIONS
from slimdeploy.graph.files.external import Array
from slimdeploy.graph.selection.emit import positions
from slimdeploy.graph.tokens.blocks import all_ids
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, label, producer

_REMEDY = "write the selections with --select gather, slice-concat or one-hot"
# Softmax along an axis gives the same numbers in the new order, whatever the order is.
_EQUIVARIANT = ("Softmax", "LogSoftmax", "Hardmax")
_UNORDERED = ("Shape", "Size")


@dataclass(frozen=True)
class Edge:
    """Operand `index` of `node`, the dense graph's tensor `name`, is to hold `local` of `axis`."""

    node: Node
    index: int
    name: str
    axis: int
    local: Ids


@dataclass
class Orders:
    """The plan: `held` says which id each position holds, where that is not the position itself.

    `edges` are operands to reorder; `picks` pairs each Gather with the positions it picks then.
    """

    held: dict[tuple[str, int], Ids] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    picks: list[tuple[Node, Array]] = field(default_factory=list)


def plan(work: Work, stream: Tensor, axis: int, order: Ids) -> Orders:
    """What changes if `stream` holds token `order[i]` at position i of `axis`.

    Raises:
        InputError: if a node depends on the order, with its name and the forms that do without.
    """
    orders = Orders({(stream.name, axis): order})
    for node in list(work.graph.nodes):
        _Planner(work, orders, node).run()
    for tensor in work.graph.outputs:
        if tensor is not stream and any(name == tensor.name for name, _ in orders.held):
            raise InputError(f"output '{tensor.name}' lists tokens by position: {_REMEDY}")
    return orders


@dataclass
class _Planner:
    """The plan for one node."""

    work: Work
    orders: Orders
    node: Node
    relation: Relation = field(init=False)

    def __post_init__(self) -> None:
        self.relation = self.work.relation(self.node)

    def run(self) -> None:
        ports = self._ordered_ports()
        if not ports or self.node.op in _UNORDERED:
            return
        for port in ports:
            self._check(port)
        settled = self._moved_picks() if self.node.op == "Gather" else None
        for group in self.relation.contracted:
            self._align(list(group))
        for index, tensor in enumerate(self.node.outputs):
            for axis in range(len(self.work.facts.shape(tensor.name))):
                if axis != settled:
                    self._pass_on(tensor, Port(index, axis))

    def _ordered_ports(self) -> list[Port]:
        return [
            Port(index, axis)
            for index, tensor in enumerate(self.node.inputs)
            if tensor.name
            for axis in range(len(self.work.facts.shapes.get(tensor.name, ())))
            if (tensor.name, axis) in self.orders.held
        ]

    def _order(self, port: Port) -> Ids:
        name = self.node.inputs[port.operand].name
        count = self.work.facts.shape(name)[port.axis]
        return self.orders.held.get((name, port.axis), all_ids(max(count, 0)))

    def _check(self, port: Port) -> None:
        links = self.relation.of_input(port)
        if mixing := [link.mixes for link in links if link.mixes]:
            if self.node.op not in _EQUIVARIANT:
                raise self._error(mixing[0])
        elif self._is_reduced(links) or self.relation.read_of(port) is not None:
            return
        elif not links and not self.relation.group_of(port):
            raise self._error(self.relation.why)

    def _is_reduced(self, links: list[Link]) -> bool:
        """Whether the node reduces that axis, to the same value in any order."""
        named = self.node.inputs[1:]
        known = all(not t.name or t.name in self.work.facts.values for t in named)
        return self.node.op in REDUCTIONS and known and not links

    def _error(self, why: str | None) -> InputError:
        return InputError(f"{label(self.node)}: tokens cannot be reordered, {why}: {_REMEDY}")

    def _align(self, ports: list[Port]) -> None:
        """Give all `ports` the order of the first that has one."""
        have = [self._order(port) for port in ports]
        order = next((ids for ids in have if ids != all_ids(len(ids))), None)
        for port, ids in zip(ports, have, strict=True):
            if order is not None and ids != order and not self._is_uniform(port):
                tensor = self.node.inputs[port.operand]
                local = positions(order, ids)
                self.orders.edges.append(
                    Edge(self.node, port.operand, tensor.name, port.axis, local)
                )

    def _is_uniform(self, port: Port) -> bool:
        return is_uniform(self.work, self.node.inputs[port.operand], port.axis)

    def _pass_on(self, tensor: Tensor, port: Port) -> None:
        links = self.relation.of_output(port)
        if all(link.source is None for link in links):
            self._align([link.input for link in links])
            orders = [self._order(link.input) for link in links]
            ordered = [ids for ids in orders if ids != all_ids(len(ids))]
            if ordered:
                self.orders.held[tensor.name, port.axis] = ordered[0]
            return
        count = self.work.facts.shape(tensor.name)[port.axis]
        ids = self._rearranged(links, count)
        if ids != all_ids(count):
            self.orders.held[tensor.name, port.axis] = ids

    def _rearranged(self, links: list[Link], count: int) -> Ids:
        """The order behind a Slice, Split or Concat that goes on taking the same positions."""
        held: dict[int, int] = {}
        for link in links:
            order = self._order(link.input)
            places = {at: j for j in range(count) if (at := link.position(j)) >= 0}
            for at, j in places.items():
                if order[at] not in places:
                    raise self._error(
                        f"it takes {len(places)} positions that then hold other tokens"
                    )
                held[j] = places[order[at]]
        return tuple(held[j] for j in range(count))

    def _moved_picks(self) -> int | None:
        """Let a Gather of constant positions follow the tokens that it picks.

        Returns the output axis that holds them in the dense graph's order, if there is one.
        """
        data, index = self.node.inputs[:2]
        axis = int(self.node.attrs.get("axis", 0)) % len(self.work.facts.shape(data.name))
        order = self._order(Port(0, axis))
        values = self.work.facts.values.get(index.name)
        if order == all_ids(len(order)) or values is None:
            return None
        wanted = [int(i) for i in np.ravel(values % len(order))]
        distinct = values.ndim == 1 and len(set(wanted)) == len(wanted)
        if distinct and {order[i] for i in wanted} == set(wanted):
            return None  # the same tokens sit at the places that it picks
        moved = np.asarray(positions(wanted, order), np.int64).reshape(values.shape)
        self.orders.picks.append((self.node, moved))
        return axis if values.ndim == 1 else None


def is_uniform(work: Work, tensor: Tensor, axis: int) -> bool:
    """Whether all positions along `axis` are known to hold the same, so that order is nothing."""
    if is_constant(tensor):
        return bool(np.all(tensor.values == np.take(tensor.values, [0], axis)))
    node: Any = producer(tensor)
    if node is None:
        return False
    output = next(i for i, other in enumerate(node.outputs) if other is tensor)
    links = work.relation(node).of_output(Port(output, axis))
    if not links:
        return node.op in ("Expand", "ConstantOfShape")
    return all(
        link.source is None
        and link.mixes is None
        and is_uniform(work, node.inputs[link.input.operand], link.input.axis)
        for link in links
    )
