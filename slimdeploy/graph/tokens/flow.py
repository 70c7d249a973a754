"""Which tokens each tensor holds once a schedule is applied, and which it is asked for.

Forwards, `available` says which token ids exist along every token axis. Backwards, from what is
read at the end, `computed` says which of them a node has to compute: it computes exactly what its
consumers ask for wherever selecting commutes with it, and all that is available elsewhere. That
is a selection hoisted as far towards the inputs as it can go; where a consumer asks for less than
a tensor holds, a selection remains on that edge. Nothing is rewritten here.

All ids are positions along the axis of the *dense* graph's tensor, so maps of Slice, Concat and
Gather compose without bookkeeping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from slimdeploy.errors import GraphError
from slimdeploy.graph.axes import Ids, Link, Port, Relation
from slimdeploy.graph.tokens.attention_weights import Axis, carry_weights
from slimdeploy.graph.tokens.blocks import Block, all_ids, token_axes
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, is_read, node_error


@dataclass
class Flow:
    """The ids along each token axis, keyed by (tensor name, axis).

    `asked` is keyed by (id of the node, input port) and holds what that edge has to deliver.
    """

    axes: Mapping[str, set[int]]
    available: dict[Axis, Ids] = field(default_factory=dict)
    computed: dict[Axis, Ids] = field(default_factory=dict)
    asked: dict[tuple[int, Port], Ids] = field(default_factory=dict)


def trace(
    work: Work,
    blocks: Sequence[Block],
    keep: Sequence[Ids] | None,
    *,
    pool_kept: bool = False,
    merged: Mapping[str, Ids] | None = None,
) -> Flow:
    """The flow of tokens if block l+1 keeps `keep[l]`; None keeps all (the lossless case).

    Args:
        pool_kept: let a head that pools over tokens pool over those that are kept.
        merged: what is left of the streams that enter blocks, by the names of Identities' outputs,
            where tokens are merged: what comes before is computed for all of them.

    Raises:
        GraphError: if dropping tokens would change what a node means, or it reads dropped ones.
    """
    merged = merged or {}
    cuts = {**(_cuts(blocks, keep) if keep else {}), **merged}
    flow = Flow(token_axes(work, list(blocks)))
    behind = _behind(work, blocks[-1])
    _Forward(work, flow, blocks, cuts, behind, pool_kept).run()
    # The tensors of which a schedule decides the tokens, whatever is read of them: the streams,
    # and all behind the last. One that keeps more than the head reads is obeyed, for other stages
    # count on it.
    settled = behind.union(block.stream.name for block in blocks)
    for node in work.graph.nodes:
        if node.outputs and node.outputs[0].name in merged:
            settled.update((node.inputs[0].name, node.outputs[0].name))
    _Backward(work, flow, settled if keep else set()).run()
    return flow


def _cuts(blocks: Sequence[Block], keep: Sequence[Ids]) -> dict[str, Ids]:
    """The ids that each residual stream keeps, by the name of the stream."""
    cuts: dict[str, Ids] = {}
    for block, ids in zip(blocks, keep, strict=True):
        if block.stream.name in cuts:
            why = "adds the results of several attentions at once, for which there is no schedule"
            raise node_error(block.add, why)
        cuts[block.stream.name] = ids
    return cuts


def _behind(work: Work, block: Block) -> set[str]:
    """The stream of `block` and the tensors that depend on it."""
    behind = {block.stream.name}
    for node in work.graph.nodes:
        if any(tensor.name in behind for tensor in node.inputs):
            behind.update(tensor.name for tensor in node.outputs)
    return behind


class _Pass:
    def __init__(self, work: Work, flow: Flow) -> None:
        self.work = work
        self.flow = flow

    def ports(self, tensors: Sequence[Tensor]) -> list[tuple[Port, Axis]]:
        """The token axes among a node's inputs or outputs; an output that no one reads has none."""
        return [
            (Port(index, axis), (tensor.name, axis))
            for index, tensor in enumerate(tensors)
            if is_read(self.work, tensor)
            for axis in sorted(self.flow.axes.get(tensor.name, ()))
        ]

    def dense(self, axis: Axis) -> Ids:
        """Every id along `axis`."""
        return all_ids(self.work.facts.shape(axis[0])[axis[1]])

    def held(self, axis: Axis) -> Ids:
        """The ids available along `axis`; none where all were dropped."""
        ids = self.flow.available.get(axis)
        return self.dense(axis) if ids is None else ids


class _Forward(_Pass):
    """Propagates which ids are available, and refuses where fewer would mean something else."""

    def __init__(
        self,
        work: Work,
        flow: Flow,
        blocks: Sequence[Block],
        cuts: Mapping[str, Ids],
        behind: set[str],
        pool_kept: bool,
    ) -> None:
        super().__init__(work, flow)
        self.cuts = cuts
        self.behind = behind
        self.pool_kept = pool_kept
        self.weights: set[Axis] = set()
        self.anchors = {id(block.anchor) for block in blocks}
        self.axis_of = {block.stream.name: block.axis for block in blocks}
        self.axis_of |= dict.fromkeys(cuts.keys() - self.axis_of.keys(), blocks[0].axis)

    def run(self) -> None:
        for node in self.work.graph.nodes:
            relation = self.work.relation(node)
            short = [item for item in self.ports(node.inputs) if self._is_short(item[1])]
            for port, axis in short:
                self._check(node, relation, port, axis)
            carry_weights(self.work, node, relation, self.weights)
            for port, axis in self.ports(node.outputs):
                ids = self._through(node, relation, port, axis) if short else self.dense(axis)
                if self.axis_of.get(axis[0]) == axis[1]:
                    allowed = set(self.cuts.get(axis[0], ids))
                    ids = tuple(i for i in ids if i in allowed)
                self.flow.available[axis] = ids
        for tensor in self.work.graph.outputs:
            for number in sorted(self.flow.axes.get(tensor.name, ())):
                if self._is_short((tensor.name, number)):
                    raise GraphError(f"output '{tensor.name}' {self._left((tensor.name, number))}")

    def _is_short(self, axis: Axis) -> bool:
        return axis in self.flow.available and self.flow.available[axis] != self.dense(axis)

    def _left(self, axis: Axis) -> str:
        count, total = len(self.held(axis)), len(self.dense(axis))
        if not count:
            return "reads only tokens that the schedule drops"
        return f"reads all {total} tokens, of which the schedule leaves {count}"

    def _check(self, node: Node, relation: Relation, port: Port, axis: Axis) -> None:
        """Refuse `node` if it cannot do with what is left along one of its input axes."""
        links = relation.of_input(port)
        if port in relation.pools:
            self._check_pool(node, relation, port, axis)
        if group := relation.group_of(port):
            self._check_group(node, group, axis)
        elif (picked := relation.read_of(port)) is not None:
            if missing := sorted(set(picked) - set(self.held(axis))):
                raise node_error(node, f"reads token {missing[0]}, which the schedule drops")
        elif not links and port not in relation.pools and node.op != "Shape":
            raise node_error(node, f"{self._left(axis)}: {relation.why}")
        for link in links:
            if link.mixes and port not in relation.pools:
                raise node_error(node, f"{self._left(axis)}: {link.mixes}")

    def _check_pool(self, node: Node, relation: Relation, port: Port, axis: Axis) -> None:
        """Blocks attend to what is left; the head may pool over it if the user says so."""
        if id(node) in self.anchors:
            return
        why = next((link.mixes for link in relation.of_input(port) if link.mixes), relation.why)
        if not self.held(axis) or node.outputs[0].name not in self.behind:
            raise node_error(node, f"{self._left(axis)}: {why}")
        if not self.pool_kept:
            remedy = "keep them all, or pool over the kept ones with --pool-kept"
            raise node_error(node, f"{self._left(axis)}: {why}; {remedy}")

    def _check_group(self, node: Node, group: tuple[Port, ...], axis: Axis) -> None:
        computed = [port for port in group if not is_constant(node.inputs[port.operand])]
        held = {self.held((node.inputs[port.operand].name, port.axis)) for port in computed}
        if len(computed) < 2:
            raise node_error(node, f"{self._left(axis)}: it weighs tokens by constants")
        if len(held) > 1:
            raise node_error(node, "sums over two axes that hold different tokens")
        weighted = any((node.inputs[p.operand].name, p.axis) in self.weights for p in computed)
        if node.op != "Attention" and not weighted:
            raise node_error(node, f"{self._left(axis)}: its sum has no weights from a Softmax")

    def _through(self, node: Node, relation: Relation, port: Port, axis: Axis) -> Ids:
        links = [
            (link, set(self.held((node.inputs[link.input.operand].name, link.input.axis))))
            for link in relation.of_output(port)
            if not is_constant(node.inputs[link.input.operand])
        ]
        return tuple(
            j
            for j in self.dense(axis)
            if all((at := link.position(j)) < 0 or at in held for link, held in links)
        )


class _Backward(_Pass):
    """Propagates which ids are asked for, from the graph outputs to the inputs."""

    def __init__(self, work: Work, flow: Flow, settled: set[str]) -> None:
        super().__init__(work, flow)
        self.settled = settled
        self.wanted: dict[Axis, set[int]] = {}

    def run(self) -> None:
        for tensor in self.work.graph.outputs:
            for number in self.flow.axes.get(tensor.name, ()):
                self.wanted[tensor.name, number] = set(self.held((tensor.name, number)))
        for node in reversed(self.work.graph.nodes):
            relation = self.work.relation(node)
            for port, axis in self.ports(node.outputs):
                self.flow.computed[axis] = self._to_compute(relation, port, axis)
            for port, axis in self.ports(node.inputs):
                self._ask(node, relation, port, axis)
            if len(node.outputs) > 1:
                self._widen(node, relation)

    def _to_compute(self, relation: Relation, port: Port, axis: Axis) -> Ids:
        links = relation.of_output(port)
        wanted = self.wanted.get(axis)
        commutes = bool(links) and not any(link.mixes for link in links)
        if wanted is None or not commutes or axis[0] in self.settled:
            return self.held(axis)
        return tuple(sorted(wanted))

    def _ask(self, node: Node, relation: Relation, port: Port, axis: Axis) -> None:
        """Ask input `port` for what the node needs of it."""
        if node.op == "Shape":
            return
        links = relation.of_input(port)
        if group := relation.group_of(port):
            ids = self._shared(node, group)
        elif (picked := relation.read_of(port)) is not None:
            ids = picked
        elif not links or any(link.mixes for link in links):
            ids = self.held(axis)
        else:
            ids = tuple(sorted(set().union(*(self._image(node, link) for link in links))))
        self.flow.asked[id(node), port] = ids
        self.wanted.setdefault(axis, set()).update(ids)

    def _image(self, node: Node, link: Link) -> set[int]:
        output = node.outputs[link.output.operand].name
        ids = self.flow.computed.get((output, link.output.axis), ())
        return {at for j in ids if (at := link.position(j)) >= 0}

    def _shared(self, node: Node, group: tuple[Port, ...]) -> Ids:
        """What is left of a summed axis: a constant operand follows the computed ones."""
        ports = [p for p in group if not is_constant(node.inputs[p.operand])] or list(group)
        return self.held((node.inputs[ports[0].operand].name, ports[0].axis))

    def _widen(self, node: Node, relation: Relation) -> None:
        """Several outputs of one axis are computed alike: each holds what any of them needs."""
        for port, axis in self.ports(node.outputs):
            for link in relation.of_output(port):
                asked = set(self.flow.asked[id(node), link.input])
                ids = self.held(axis)
                self.flow.computed[axis] = tuple(j for j in ids if link.position(j) in asked)
