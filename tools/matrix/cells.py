"""One measurement: a file slimmed in some form, against the dense file with tokens masked out."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from slimdeploy.errors import SlimdeployError, one_line
from slimdeploy.graph import GraphOptions, lossless_graph, slim_graph
from slimdeploy.graph.masked import masked_graph
from slimdeploy.graph.slimming import prepared
from slimdeploy.graph.tokens.blocks import find_blocks
from tools.matrix.exporters import Exporter, export
from tools.matrix.families import Family

Status = Literal["equal", "differs", "refused", "not exported", "broken file"]
Floats = NDArray[np.float64]

FORMS = ("gather", "slice", "slice-concat", "one-hot", "lossless", "optimize")
TOLERANCE = 2e-5
TOLERANCE_HALF = 1e-2
_FRACTIONS = (0.85, 1.0, 0.6, 0.9)  # the share of tokens that each block in turn keeps


@dataclass(frozen=True)
class Cell:
    """What became of one file in one form.

    Attributes:
        status: "equal" if the largest error over all batches is within the tolerance, "refused"
            if slimdeploy says why not, "not exported" if PyTorch could not write the file, "broken
            file" if ONNX Runtime cannot run the file that it wrote.
        error: the largest absolute difference, as a share of the reference's largest value.
        effect: how far masking the tokens moved the dense result, on the same scale: an error is
            telling only if it is far below.
        text: why there is no number.
    """

    status: Status
    error: float | None = None
    effect: float | None = None
    text: str = ""


def measure(
    family: Family, exporter: Exporter, forms: tuple[str, ...], cache: Path | None = None
) -> dict[str, Cell]:
    """The cells of one file, by form."""
    try:
        dense = export(family, exporter, cache)
    except Exception as error:  # torch raises anything
        return dict.fromkeys(forms, Cell("not exported", text=_plain(error)))
    try:
        expected = [run(dense, image) for image in _images(family, exporter)]
    except Exception as error:  # what ONNX Runtime raises has no common type
        return dict.fromkeys(forms, Cell("broken file", text=_plain(error)))
    return {form: _cell(family, exporter, dense, expected, form) for form in forms}


def _cell(
    family: Family, exporter: Exporter, dense: onnx.ModelProto, expected: list[Floats], form: str
) -> Cell:
    images = _images(family, exporter)
    try:
        if form == "lossless":
            slim, reference, effect = lossless_graph(dense).model, expected, None
        else:
            keep = schedule(family, dense, keep_prefix=form == "slice")
            slim = slim_graph(dense, keep, options(family, form)).model
            masked = masked_graph(dense, keep, pool_kept=family.pools)
            reference = [run(masked, image) for image in images]
            effect = _error(expected, reference)
    except SlimdeployError as error:
        return Cell("refused", text=str(error).removeprefix("model: "))
    error_now = _error([run(slim, image) for image in images], reference)
    half = expected[0].size and "fp16" in exporter.name
    passed = error_now <= (TOLERANCE_HALF if half else TOLERANCE)
    return Cell("equal" if passed else "differs", error_now, effect)


def options(family: Family, form: str) -> GraphOptions:
    """How a graph of this form is asked for."""
    if form == "optimize":
        return GraphOptions(optimize=True, pool_kept=family.pools)
    choice: Any = form
    return GraphOptions(select=choice, pool_kept=family.pools)


def schedule(
    family: Family, dense: onnx.ModelProto, *, keep_prefix: bool = False
) -> list[list[int]]:
    """A random nested schedule, the same for every exporter of a family.

    Counts fall irregularly. Prefix tokens that the head does not read may go like any other; the
    form "slice" needs them to stay where a graph tells them from patches by their place.
    """
    blocks, _ = find_blocks(prepared(dense))
    held = list(range(family.tokens or blocks[0].keys))
    rng = np.random.default_rng(zlib.crc32(family.name.encode()))
    always = set(range(family.prefix) if keep_prefix else family.reads)
    always.update(held[-1:] if family.pools else ())
    keep = []
    for number in range(len(blocks)):
        free = [i for i in held if i not in always]
        count = int(_FRACTIONS[number % len(_FRACTIONS)] * len(free))
        held = sorted(always.union(rng.permutation(free)[:count].tolist())) or held
        keep.append(held)
    if not family.pools:
        keep[-1] = sorted(always.union(held[:3]))
    return keep


def run(model: onnx.ModelProto, image: NDArray[np.float32]) -> Floats:
    """The model's first output, by ONNX Runtime on one thread."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), settings, ["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    pixels = image.astype(np.float16 if entry.type == "tensor(float16)" else np.float32)
    result: Floats = session.run(None, {entry.name: pixels})[0].astype(np.float64)
    return result


def _images(family: Family, exporter: Exporter) -> list[NDArray[np.float32]]:
    batches = (1, 3) if exporter.dynamic else (1,)
    return [
        np.random.default_rng(size).normal(size=(size, 3, *family.image)).astype(np.float32)
        for size in batches
    ]


def _error(results: list[Floats], references: list[Floats]) -> float:
    pairs = zip(results, references, strict=True)
    return float(max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs))


def _plain(error: BaseException) -> str:
    """One line without terminal colours."""
    return f"{type(error).__name__}: {re.sub(chr(27) + r'[^m]*m', '', one_line(error))}"
