"""`slimdeploy export --onnx`: from a dense file to a slim one, without torch.

Weights are most of a model, so no more than two copies of them are held at any time: the graph
stage ends, and lets go of its models, before a runtime loads what was written.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from slimdeploy.cli.common import command_line, load_onnx, onnx_outputs
from slimdeploy.cli.export.stage import PACKAGES, Stage
from slimdeploy.cli.onnx_source import open_dense, require_droppable
from slimdeploy.cli.other_weights import weights_remark
from slimdeploy.errors import MissingError
from slimdeploy.files import TEMPORARY
from slimdeploy.graph.anatomy.geometry import check_geometry
from slimdeploy.graph.files.storage import replaced_model, save_model, write_model
from slimdeploy.graph.outputs import keep_outputs
from slimdeploy.manifest import write_manifest
from slimdeploy.measure.parity import Parity
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import ModelGeometry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class _Written:
    """What is known of a written graph once its weights are let go."""

    geometry: ModelGeometry
    preprocessing: Preprocessing | None
    counts: list[int]
    notes: list[str]
    allowed: float


def export_file(stage: Stage, path: Path, outputs: tuple[str, ...], output: Path) -> dict[str, Any]:
    """Make `output` from the dense file at `path`; the result as a record.

    Raises:
        InputError: if the schedule is for another model, or no token can be dropped.
        GraphError: as the graph stage.
        GateError: if the result differs from `dense_reference`; nothing is written then.
    """
    with replaced_model(output) as temporary:
        made = _write(stage, path, outputs, temporary)
        gc.collect()  # graphs refer to themselves: without this their weights would stay
        parity = _parity(stage, path, made, temporary)
        if parity is not None:
            parity.require(f"{output}: against {path}; nothing was written")
        record = None if parity is None else parity.to_json()
        _describe(stage, path, made, record, temporary)
    return {
        "output": str(output),
        "kind": stage.kind,
        "source": "onnx",
        "tokens_per_block": made.counts,
        "parity": record,
        "notes": made.notes,
    }


def _describe(
    stage: Stage, path: Path, made: _Written, record: dict[str, Any] | None, file: Path
) -> None:
    schedule = {} if stage.schedule_path is None else {"schedule": stage.schedule_path}
    write_manifest(
        file,
        kind=f"{stage.kind}-onnx",
        made_from={"dense": path, **schedule},
        command=command_line(),
        packages=PACKAGES,
        preprocessing=made.preprocessing,
        tokens_per_block=made.counts,
        results={} if record is None else {"parity": record},
    )


def _write(stage: Stage, path: Path, outputs: tuple[str, ...], target: Path) -> _Written:
    recorded = () if stage.schedule is None else stage.schedule.model.outputs
    dense = open_dense(path, outputs or recorded)
    preprocessing = dense.preprocessing
    if stage.schedule is not None:
        assert stage.schedule_path is not None
        require_droppable(dense)
        check_geometry(dense.geometry, stage.schedule.model, str(stage.schedule_path))
        preprocessing = stage.schedule.preprocessing or preprocessing
    made = stage.apply(dense.model, str(path))
    write_model(made.model, target)
    counts = [block.queries for block in made.blocks]
    allowed, notes = stage.allowed(made.model), list(made.notes)
    if stage.schedule is not None and stage.schedule_path is not None:
        remark = weights_remark(stage.schedule, stage.schedule_path, path)
        notes += [remark] if remark else []
    return _Written(dense.geometry, preprocessing, counts, notes, allowed)


def _parity(stage: Stage, path: Path, made: _Written, file: Path) -> Parity | None:
    """How far the written file is from the dense graph; None, with a note, if it cannot run."""
    if not stage.check:
        return None
    if stage.options.prefix_blocks is not None:
        made.notes.append("a probe ends inside the model: its numbers were not compared")
        return None
    from slimdeploy.measure.parity import compare_all

    images = stage.images(made.preprocessing, made.geometry.input_size)
    if stage.plan is not None:
        from slimdeploy.cli.dynamic_check import file_parity

        return file_parity(path, made.geometry, file, stage.plan, images, made.allowed)
    try:
        reference = _reference(stage, path, made.geometry, images)
        found = onnx_outputs(file, images)
    except MissingError as error:
        made.notes.append(f"not checked: {error}")
        return None
    return compare_all(reference, found, made.allowed)


def _reference(
    stage: Stage, path: Path, geometry: ModelGeometry, images: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """The dense file's outputs, with the dropped tokens masked out of it if there are any."""
    if stage.keep is None and not geometry.outputs:
        return onnx_outputs(path, images)
    with TemporaryDirectory(prefix=TEMPORARY) as folder:
        reference = Path(folder) / "reference.onnx"
        _write_reference(stage, path, geometry, reference)
        gc.collect()
        return onnx_outputs(reference, images)


def _write_reference(stage: Stage, path: Path, geometry: ModelGeometry, target: Path) -> None:
    from slimdeploy.graph.masked import masked_graph

    model = load_onnx(path)
    keep_outputs(model, geometry.outputs)
    if stage.keep is not None:
        # A head that reads single tokens has nothing to pool, whatever was asked.
        pooled = stage.pool_kept and bool(geometry.head_pools)
        model = masked_graph(model, stage.keep, pool_kept=pooled)
    save_model(model, target)
