"""How far a slim graph is from the dense one, on images that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from slimdeploy.forward.anatomy import BlockNames
from slimdeploy.forward.cut import Cutter
from slimdeploy.forward.running import Feed, open_whole
from slimdeploy.store import Array, Store

_WHOLE = (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL)


def judged_outputs(model: onnx.ModelProto) -> list[str]:
    """Names of the outputs that are compared, the result first: an image's real numbers, if any.

    A class that is given out as a whole number tells less than what it is the largest of.
    """
    kinds = {value.name: value.type.tensor_type for value in model.graph.output}
    shaped = [name for name, kind in kinds.items() if kind.shape.dim]
    return [name for name in shaped if kinds[name].elem_type not in _WHOLE] or shaped or [*kinds]


@dataclass(frozen=True)
class HeadError:
    """Slim against dense, on `images` images.

    Attributes:
        head_input: squared error of the residual stream that the head reads, at the kept tokens,
            over its squared norm.
        outputs: the same of the result, which is the first output of real numbers.
        top1_agreement: the share of images whose largest output is at the same place; None where
            there is but one, as of a regression.
    """

    images: int
    head_input: float
    outputs: float
    top1_agreement: float | None

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)


@dataclass(frozen=True)
class HeadView:
    """The stream that the head reads and the result, of one graph on the same images.

    Attributes:
        stream: [n, tokens held, D], from a `Store`.
        outputs: [n, ...].
    """

    stream: Array
    outputs: Array

    @classmethod
    def of(
        cls, model: onnx.ModelProto, blocks: Sequence[BlockNames], feed: Feed, store: Store
    ) -> HeadView:
        """Run a dense graph or what was made of it."""
        end = blocks[-1].output or blocks[-1].attention
        first, count = judged_outputs(model)[0], len(feed.images)
        stream, answers = None, []
        with open_whole(Cutter(model).cut([], list(dict.fromkeys((end, first))))) as part:
            for rows, found in feed.run(part):
                if stream is None:
                    stream = store.new((count, *found[end].shape[1:]), found[end].dtype)
                stream[rows] = found[end]
                answers.append(found[first])
        assert stream is not None
        return cls(stream, np.concatenate(answers))

    def against(self, dense: HeadView, ids: Sequence[int]) -> HeadError:
        """How far this is from `dense`, whose tokens `ids` it holds, in this order."""
        one, two = (view.outputs.reshape(len(view.outputs), -1) for view in (self, dense))
        return HeadError(
            images=len(one),
            head_input=_relative(self.stream, dense.stream, list(ids)),
            outputs=_relative(one, two, list(range(two.shape[1]))),
            top1_agreement=_agreement(one, two),
        )


def _agreement(one: Array, two: Array) -> float | None:
    if one.shape[1] > 1:
        return float((one.argmax(1) == two.argmax(1)).mean())
    if np.issubdtype(one.dtype, np.floating):
        return None
    return float((one == two).mean())  # the class itself


def error_of(
    slim: onnx.ModelProto,
    blocks: Sequence[BlockNames],
    feed: Feed,
    wanted: HeadView,
    ids: Sequence[int],
    store: Store,
) -> HeadError:
    """How far a graph that holds the tokens `ids` in the end is from the dense one's `wanted`."""
    view = HeadView.of(slim, blocks, feed, store)
    try:
        return view.against(wanted, ids)
    finally:
        store.release(view.stream)


def _relative(found: Array, wanted: Array, ids: list[int]) -> float:
    """Squared error of `found`, [n, ...], as a share of the norm of `wanted` at `ids`."""
    norm = wrong = 0.0
    for one, two in zip(found, wanted, strict=True):  # an image at a time: there may be many
        expected = two[ids].astype(np.float64)
        norm += float(np.square(expected).sum())
        wrong += float(np.square(one.astype(np.float64) - expected).sum())
    if norm == 0:
        return 0.0 if wrong == 0 else float("inf")
    return wrong / norm
