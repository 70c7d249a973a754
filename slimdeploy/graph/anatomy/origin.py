"""Where tokens come from: patches of the image, or something else before them."""

from __future__ import annotations

from typing import NamedTuple

from slimdeploy.errors import GraphError
from slimdeploy.graph.axes import Port
from slimdeploy.graph.axes.layout import factor_groups
from slimdeploy.graph.shapes import channels_last
from slimdeploy.graph.work import Node, Tensor, Work, label, producer

Grid = tuple[int, int]


class Image(NamedTuple):
    """An input that holds images: its name; channels, height and width."""

    name: str
    size: tuple[int, int, int]


def origin_of_tokens(work: Work, stream: Tensor, axis: int) -> tuple[int, Grid, Image]:
    """The number of prefix tokens of `stream`, the grid of its patches, and the image.

    Raises:
        GraphError: if patches do not come last, row by row, or no grid of them is found.
    """
    count = work.facts.shape(stream.name)[axis]
    places, (node, grid) = _Walk(work).patches(stream, axis, {i: i for i in range(count)})
    ids = sorted(places)
    if ids != list(range(count - len(ids), count)):
        raise GraphError(f"tokens {ids[0]} to {ids[-1]} are patches, but they must come last")
    if [places[i] for i in ids] != list(range(grid[0] * grid[1])):
        raise GraphError(f"{label(node)}: not all patches become tokens, row by row")
    return count - len(ids), grid, _image(work)


class _Walk:
    """Follows token ids from the stream back to the image."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.seen = _image_dependent(work)

    def patches(
        self, tensor: Tensor, axis: int, places: dict[int, int]
    ) -> tuple[dict[int, int], tuple[Node, Grid]]:
        """Where ids sit on the axis of patches, and the node that merges rows and columns.

        `places` maps an id to its position along `axis` of `tensor`; ids leave it on the way.
        """
        node = producer(tensor)
        if node is None:
            raise GraphError(f"tensor '{tensor.name}': its tokens are not patches of an image")
        port = Port(next(i for i, t in enumerate(node.outputs) if t is tensor), axis)
        links = [
            link
            for link in self.work.relation(node).of_output(port)
            if node.inputs[link.input.operand].name in self.seen
        ]
        if not links:
            return places, (node, self._grid(node, axis))
        found: dict[int, int] = {}
        merge = None
        for link in links:
            inner = {i: at for i, j in places.items() if (at := link.position(j)) >= 0}
            if inner and (merge is None or not inner.keys() <= found.keys()):
                operand = node.inputs[link.input.operand]
                more, merge = self.patches(operand, link.input.axis, inner)
                found.update(more)
        if merge is None:
            raise GraphError(f"{label(node)}: no token of it comes from the image")
        return found, merge

    def _grid(self, node: Node, axis: int) -> Grid:
        """The two axes that `node` merges into the axis of patches."""
        shape = self.work.facts.shape(node.outputs[0].name)
        if node.op == "Reshape":
            old_shape = self.work.facts.shape(node.inputs[0].name)
            for old, new in factor_groups(old_shape, shape):
                if new == [axis] and len(old) == 2 and min(old_shape[i] for i in old) > 0:
                    return old_shape[old[0]], old_shape[old[1]]
        elif len(shape) == 4 and axis > 1 and 1 in shape[2:]:
            return shape[2], shape[3]  # a single row of patches is never merged
        reason = self.work.relation(node).why
        raise GraphError(f"{label(node)}: no grid of patches becomes its tokens: {reason}")


def _image(work: Work) -> Image:
    """The one input of rank 4, channels first or last.

    Raises:
        GraphError: if there is none, or more than one.
    """
    shapes = {t.name: work.facts.shapes.get(t.name, ()) for t in work.graph.inputs if t.outputs}
    images = [(name, shape) for name, shape in shapes.items() if len(shape) == 4]
    if len(images) != 1:
        raise GraphError(f"{len(images)} inputs are images [B, C, H, W]; there must be one")
    name, (_, *sizes) = images[0]
    if channels_last(sizes):
        height, width, channels = sizes
    else:
        channels, height, width = sizes
    return Image(name, (channels, height, width))


def _image_dependent(work: Work) -> set[str]:
    """Names of the tensors whose numbers, not only whose shapes, depend on an input."""
    seen = {tensor.name for tensor in work.graph.inputs}
    for node in work.graph.nodes:
        if node.op not in ("Shape", "Size") and any(t.name in seen for t in node.inputs):
            seen.update(tensor.name for tensor in node.outputs)
    return seen
