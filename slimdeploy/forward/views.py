"""What estimators look at: the dense graph's blocks and its streams on the calibration images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from slimdeploy.forward.anatomy import BlockNames
from slimdeploy.forward.cut import Cutter
from slimdeploy.forward.running import Feed, open_part
from slimdeploy.schedule import ModelGeometry
from slimdeploy.store import Array, Store


@dataclass
class Views:
    """The dense graph's blocks and its streams on the calibration images.

    Attributes:
        streams: per layer l from 0 the dense Z_l over all images, [n, N, D], once asked for.
        keep: ids kept by the layers that are decided already, by their number.
    """

    geometry: ModelGeometry
    cutter: Cutter
    blocks: Sequence[BlockNames]
    feed: Feed
    store: Store
    keep: dict[int, Sequence[int]] = field(default_factory=dict)
    streams: dict[int, Array] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """N, the number of tokens of the dense stream."""
        return self.geometry.tokens

    def stream(self, layer: int) -> Array:
        """Z_layer over all images; those of all layers before it are made on the way."""
        if layer not in self.streams:
            name = self._behind(layer)
            start = self.blocks[layer - 1].entering if layer else None
            known = {} if start is None else {start: self.stream(layer - 1)}
            with open_part(self.cutter.cut([*known], [name])) as part:
                self.streams[layer] = self.feed.collect(self.store, part, name, known)
        return self.streams[layer]

    def _behind(self, layer: int) -> str:
        """The stream behind `layer`; behind the last, what the head reads."""
        if layer < len(self.blocks):
            return self.blocks[layer].entering
        return self.blocks[-1].output or self.blocks[-1].attention

    def entering(self, block: BlockNames) -> dict[str, Array]:
        """The activations that enter `block`, by name."""
        return {block.entering: self.stream(block.number - 1)}
