"""Run parts of a graph over all calibration images, batch by batch, by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from slimdeploy.engine import Engine, TensorInfo
from slimdeploy.engine.batching import infer_batched
from slimdeploy.engine.onnxruntime import OnnxRuntimeEngine
from slimdeploy.errors import GraphError
from slimdeploy.files import TEMPORARY
from slimdeploy.forward.cut import Cutter
from slimdeploy.graph.files.storage import save_model
from slimdeploy.measure.feeding import laid_out
from slimdeploy.store import Array, Store

_SCORES = 1 << 27
_LARGEST_BATCH = 16


def batch_size(heads: int, tokens: int) -> int:
    """Images at a time, so that the attention maps of one block stay within 128 MB."""
    return max(1, min(_LARGEST_BATCH, _SCORES // (4 * heads * tokens**2)))


@dataclass
class Part:
    """A part of a graph that is loaded and ready to run; see `open_part`."""

    engine: Engine

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name for one batch; `feeds` may hold more than is read.

        A part of a fixed batch size is run several times.
        """
        infos = self.engine.inputs
        fed = {i.name: _laid_out(np.asarray(feeds[i.name]), i) for i in infos}
        count = len(next(iter(fed.values())))
        size = next((i.shape[0] for i in infos if i.shape and i.shape[0]), None) or count
        return infer_batched(self.engine, fed, size)


def _laid_out(x: Array, info: TensorInfo) -> Array:
    """Of the type that is taken; images of a model that takes them as [n, H, W, C] that way."""
    if x.ndim == 4 and x.shape[1:] != info.shape[1:] and None not in info.shape[1:]:
        x = laid_out(x, info)
    return x.astype(info.dtype, copy=False)


@contextmanager
def open_part(model: onnx.ModelProto) -> Iterator[Part]:
    """Load a part of a graph, as `Cutter.cut` gives it."""
    with OnnxRuntimeEngine(model.SerializeToString()) as engine:
        yield Part(engine)


@contextmanager
def open_whole(model: onnx.ModelProto) -> Iterator[Part]:
    """Load a whole graph; through a file, for it may be larger than a message."""
    with TemporaryDirectory(prefix=TEMPORARY) as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        with OnnxRuntimeEngine(path) as engine:
            yield Part(engine)


@dataclass
class Feed:
    """Calibration images, and batches of them.

    Attributes:
        name: the graph's input that takes the images.
        images: as it takes them, [n, C, H, W].
        batch: images at a time.
    """

    name: str
    images: Array
    batch: int

    def rows(self) -> Iterator[slice]:
        """The batches, as slices of the images."""
        for start in range(0, len(self.images), self.batch):
            yield slice(start, min(start + self.batch, len(self.images)))

    def run(
        self, part: Part, known: Mapping[str, Array] | None = None
    ) -> Iterator[tuple[slice, dict[str, Array]]]:
        """The outputs of `part` for every batch; `known` holds arrays over all images, by name."""
        known = {self.name: self.images, **(known or {})}
        for rows in self.rows():
            yield rows, part({name: array[rows] for name, array in known.items()})

    def collect(
        self, store: Store, part: Part, name: str, known: Mapping[str, Array] | None = None
    ) -> Array:
        """One output over all images, [n, ...], from `store`."""
        result: Array | None = None
        for rows, outputs in self.run(part, known):
            found = outputs[name]
            if result is None:
                result = store.new((len(self.images), *found.shape[1:]), found.dtype)
            result[rows] = found
        assert result is not None
        return result


def feed_of(model: onnx.ModelProto, images: Array, batch: int) -> Feed:
    """The images as the only input of `model` takes them.

    Raises:
        GraphError: if the model has several inputs.
    """
    names: Sequence[str] = Cutter(model).images
    if len(names) != 1:
        raise GraphError(f"the model has the inputs {', '.join(names)}; it must take images only")
    return Feed(names[0], images, batch)
