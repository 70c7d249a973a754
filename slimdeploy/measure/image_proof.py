"""Prove a file in which each image decides for itself: what it keeps, or what it merges.

Image by image the dense graph, in which every token is computed, is fed what the file says that it
decided; then the outputs must agree. And what was decided must be the best, up to rounding, by the
tokens that this graph computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from slimdeploy.engine import Engine, TensorInfo, open_engine
from slimdeploy.errors import GateError
from slimdeploy.measure.block_parity import Array
from slimdeploy.measure.feeding import infer_all, laid_out
from slimdeploy.measure.parity import Parity, compare_outputs
from slimdeploy.measure.proof import Proof, merged, session

SHORTFALL = 50
"""Decisions may miss the best by this many tolerances, in standard deviations of what decides."""

Decided = Sequence[NDArray[np.int64] | None]
"""Per block what was decided, [images, k]; None where there is nothing to decide."""


class ImagePair(Protocol):
    """A file and the dense graph it is judged by."""

    slim: Path
    probed: onnx.ModelProto
    batch: int

    @property
    def reference(self) -> onnx.ModelProto:
        """The dense graph, with what was decided as further inputs and tokens as outputs."""
        ...

    @property
    def remark(self) -> str:
        """What was found of the decisions, for a person."""
        ...

    def decided(self, seen: Mapping[str, Array], images: int) -> Decided:
        """What the outputs of `probed` say was decided."""
        ...

    def feeds(self, inputs: Sequence[TensorInfo], decided: Decided) -> dict[str, Array]:
        """The further inputs of `reference`, by name and of any type, for one image."""
        ...

    def check(self, tokens: Mapping[str, Array], decided: Decided, tolerance: float) -> None:
        """Compare what was decided for one image with the best, by the outputs of `reference`.

        Raises:
            GateError: if it is not the best.
        """
        ...


def prove_images(
    pair: ImagePair, batches: Iterable[Array], tolerance: float, threads: int | None
) -> Proof:
    """Run both on all images and compare.

    Raises:
        GateError: if a decision is not the best, or outputs have other shapes.
        InputError: if a model cannot be run.
    """
    parts: dict[str, Parity] = {}
    images = 0
    with (
        session(pair.probed, threads) as probed,
        session(pair.reference, threads) as reference,
        open_engine(pair.slim, threads=threads) as shipped,
    ):
        outputs = _given(reference, shipped)
        for batch in batches:
            decided = pair.decided(infer_all(probed, batch), len(batch))
            result = infer_all(shipped, batch)
            for at in (slice(place, place + 1) for place in range(len(batch))):
                mine = [None if found is None else found[at] for found in decided]
                expected = _expected(reference, batch[at], pair.feeds(reference.inputs, mine))
                pair.check(expected, mine, tolerance)
                for name in outputs:
                    wanted, found = expected[name].reshape(1, -1), result[name][at].reshape(1, -1)
                    parity = compare_outputs(wanted, found, tolerance)
                    parts[name] = merged(parts[name], parity) if name in parts else parity
            images += len(batch)
    return Proof(images, parts, [])


def _given(reference: Engine, shipped: Engine) -> list[str]:
    """Names of the outputs that both have.

    Raises:
        GateError: if there is none.
    """
    given = {info.name for info in reference.outputs}
    outputs = [info.name for info in shipped.outputs if info.name in given]
    if not outputs:
        raise GateError(f"it has none of the dense graph's outputs {sorted(given)}")
    return outputs


def _expected(reference: Engine, image: Array, feeds: dict[str, Array]) -> dict[str, Array]:
    """All outputs for one image [1, C, H, W]; of a fixed batch it takes every place."""
    fed, rows = dict[str, Array](), 1
    for info in reference.inputs:
        if info.name in feeds:
            fed[info.name] = feeds[info.name].astype(info.dtype)
        else:
            rows = info.shape[0] or 1
            fed[info.name] = np.repeat(laid_out(image, info), rows, 0).astype(info.dtype)
    found = reference.infer(fed)
    return {name: y[: max(1, len(y) // rows)] for name, y in found.items()}
