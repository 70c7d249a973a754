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
from slimdeploy.store import Array


@dataclass(frozen=True)
class HeadError:
    """Slim against dense, on `images` images.

    Attributes:
        head_input: squared error of the residual stream that the head reads, at the kept tokens,
            over its squared norm.
        outputs: the same of the first output.
        top1_agreement: the share of images whose largest output is at the same place.
    """

    images: int
    head_input: float
    outputs: float
    top1_agreement: float

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)


@dataclass(frozen=True)
class HeadView:
    """The stream that the head reads and the first output, of one graph on the same images."""

    stream: Array
    outputs: Array

    @classmethod
    def of(cls, model: onnx.ModelProto, blocks: Sequence[BlockNames], feed: Feed) -> HeadView:
        """Run a dense graph or what was made of it."""
        end = blocks[-1].output or blocks[-1].attention
        first = model.graph.output[0].name
        with open_whole(Cutter(model).cut([], list(dict.fromkeys((end, first))))) as part:
            found = [outputs for _, outputs in feed.run(part)]
        stream, outputs = (np.concatenate([x[name] for x in found]) for name in (end, first))
        return cls(stream, outputs)

    def against(self, dense: HeadView, ids: Sequence[int]) -> HeadError:
        """How far this is from `dense`, whose tokens `ids` it holds, in this order."""
        one, two = (view.outputs.reshape(len(view.outputs), -1) for view in (self, dense))
        return HeadError(
            images=len(one),
            head_input=_relative(self.stream, dense.stream[:, list(ids)]),
            outputs=_relative(one, two),
            top1_agreement=float((one.argmax(1) == two.argmax(1)).mean()),
        )


def _relative(found: Array, wanted: Array) -> float:
    wanted = wanted.astype(np.float64)
    norm = float(np.square(wanted).sum())
    wrong = float(np.square(found.astype(np.float64) - wanted).sum())
    if norm == 0:
        return 0.0 if wrong == 0 else float("inf")
    return wrong / norm
