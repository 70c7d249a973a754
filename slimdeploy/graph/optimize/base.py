"""What the optimising passes share: they rewrite place by place, and note once what they left."""

from __future__ import annotations

from abc import abstractmethod

from slimdeploy.errors import GraphError
from slimdeploy.graph.axes import Shape
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.work import Node, Work, label


class Optimization(Pass):
    """A pass that computes the same with less work, wherever its pattern is found.

    What does not match is left as it is. Where a place nearly matches, `leave` records why, and
    one note a pass says so: a line, however many blocks there are.
    """

    def __init__(self) -> None:
        self._left: dict[str, list[str]] = {}
        self._outputs: dict[str, Shape | None] = {}

    def requires(self, work: Work) -> None:
        """Remember what the graph gives."""
        self._outputs = _output_shapes(work)

    def ensures(self, work: Work) -> None:
        """The graph gives the same outputs, by name and shape."""
        if (found := _output_shapes(work)) != self._outputs:
            raise GraphError(f"the outputs became {found}, were {self._outputs}")

    def call(self, work: Work) -> None:
        self._left = {}
        self.rewrite(work)
        if self._left:
            work.notes.append(f"{self.name} left alone {'; '.join(map(self._line, self._left))}")

    @abstractmethod
    def rewrite(self, work: Work) -> None:
        """Rewrite every place that matches."""

    def leave(self, node: Node, why: str) -> None:
        """Record that the place at `node` stays as it is."""
        self._left.setdefault(why, []).append(label(node))

    def _line(self, why: str) -> str:
        nodes = self._left[why]
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        return f"{nodes[0]}{more}: {why}"


def _output_shapes(work: Work) -> dict[str, Shape | None]:
    return {tensor.name: work.facts.shapes.get(tensor.name) for tensor in work.graph.outputs}
