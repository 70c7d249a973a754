"""Run a graph on images and look at tensors inside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from slimdeploy.engine import OnnxRuntimeEngine
from slimdeploy.errors import GateError
from slimdeploy.files import TEMPORARY
from slimdeploy.graph.files.external import Array
from slimdeploy.graph.files.storage import save_model
from slimdeploy.graph.work import Work
from slimdeploy.measure.feeding import infer_all
from slimdeploy.precision.calibration import Calibration

Progress = Callable[[int, int], None]

_GROUP = 1 << 26
"""Bytes of tensors for one image that are looked at in one run."""
_BATCH = 8


def observe(
    work: Work,
    names: Sequence[str],
    images: Calibration,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Iterator[tuple[str, Array]]:
    """Each of the tensors `names` for each batch of images, by ONNX Runtime on the CPU.

    Many or large tensors are looked at in several runs, so that memory stays bounded.

    Raises:
        GateError: if one holds NaN or infinity; the message names it and what computes it.
        InputError: if an image cannot be read, or is of another size than the model's.
    """
    groups = list(_groups(work, names))
    total, done = len(groups) * images.described.count, 0
    for group in groups:
        with TemporaryDirectory(prefix=TEMPORARY) as folder:
            path = Path(folder) / "observed.onnx"
            save_model(exposed(work, group), path)
            with OnnxRuntimeEngine(path, threads=threads) as engine:
                for batch in images.batches(_BATCH):
                    for name, array in infer_all(engine, batch).items():
                        _require_finite(work, name, array)
                        yield name, array
                    done += len(batch)
                    if progress is not None:
                        progress(done, total)


def exposed(work: Work, names: Sequence[str]) -> onnx.ModelProto:
    """The graph with the tensors `names` as its only outputs."""
    model = work.export()
    del model.graph.output[:]
    for name in names:
        kind = work.facts.types[name]
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return model


def _groups(work: Work, names: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    held = 0
    for name in names:
        size = 4 * math.prod(abs(side) for side in work.facts.shape(name))
        if group and held + size > _GROUP:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _require_finite(work: Work, name: str, array: Array) -> None:
    if not np.isfinite(array).all():
        maker = next((n for n in work.graph.nodes if n.outputs[0].name == name), None)
        by = "" if maker is None else f", which node '{maker.name}' ({maker.op}) computes,"
        raise GateError(
            f"tensor '{name}'{by} holds NaN or infinity on a calibration image: the float32 model "
            "is not sound there"
        )
