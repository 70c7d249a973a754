"""`slimdeploy export --onnx`: from a dense file to a slim one, without torch."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from slimdeploy.cli.common import command_line, onnx_logits
from slimdeploy.cli.export_stage import PACKAGES, Stage
from slimdeploy.cli.onnx_source import DenseFile, open_dense, require_droppable
from slimdeploy.errors import MissingError
from slimdeploy.files import staged
from slimdeploy.graph.geometry import check_geometry
from slimdeploy.graph.storage import save_model
from slimdeploy.manifest import write_manifest
from slimdeploy.measure.parity import Parity
from slimdeploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slimdeploy.graph import SlimGraph


def export_file(stage: Stage, path: Path, outputs: tuple[str, ...], output: Path) -> dict[str, Any]:
    """Make `output` from the dense file at `path`; the result as a record.

    Raises:
        InputError: if the schedule is for another model, or no token can be dropped.
        GraphError: as the graph stage.
        GateError: if the result differs from the masked dense graph; nothing is written then.
    """
    recorded = () if stage.schedule is None else stage.schedule.model.outputs
    dense = open_dense(path, outputs or recorded)
    if stage.schedule is not None:
        assert stage.schedule_path is not None
        require_droppable(dense)
        check_geometry(dense.geometry, stage.schedule.model, str(stage.schedule_path))
    made = stage.apply(dense.model, str(path))
    notes = list(made.notes)
    with staged(output) as temporary:
        save_model(made.model, temporary)
        parity = _parity(stage, dense, temporary, notes)
        if parity is not None:
            parity.require(f"{output}: against {path}; nothing was written")
    _describe(stage, dense, made, parity, output)
    return {
        "output": str(output),
        "kind": stage.kind,
        "source": "onnx",
        "tokens_per_block": [block.queries for block in made.blocks],
        "parity": None if parity is None else parity.to_json(),
        "notes": notes,
    }


def _parity(stage: Stage, dense: DenseFile, made: Path, notes: list[str]) -> Parity | None:
    """How far the written file is from the dense graph; None, with a note, if it cannot run."""
    if not stage.check:
        return None
    if stage.options.prefix_blocks is not None:
        notes.append("a probe ends inside the model: its numbers were not compared")
        return None
    from slimdeploy.measure.parity import compare_outputs

    images = stage.images(_preprocessing(stage, dense), dense.geometry.input_size)
    try:
        reference = _reference(stage, dense, images)
        found = onnx_logits(made, stage.fed(images))
    except MissingError as error:
        notes.append(f"not checked: {error}")
        return None
    return compare_outputs(reference, found, stage.tolerance)


def _reference(stage: Stage, dense: DenseFile, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The dense file's outputs, with the dropped tokens masked out of it if there are any."""
    from slimdeploy.graph.masked import masked_graph

    if stage.keep is None and not dense.geometry.outputs:
        return onnx_logits(dense.path, images)
    model = dense.model
    if stage.keep is not None:
        model = masked_graph(model, stage.keep, pool_kept=stage.pool_kept)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reference.onnx"
        save_model(model, path)
        return onnx_logits(path, images)


def _preprocessing(stage: Stage, dense: DenseFile) -> Preprocessing | None:
    recorded = None if stage.schedule is None else stage.schedule.preprocessing
    return recorded or dense.preprocessing


def _describe(
    stage: Stage, dense: DenseFile, made: SlimGraph, parity: Parity | None, output: Path
) -> None:
    schedule = {} if stage.schedule_path is None else {"schedule": stage.schedule_path}
    write_manifest(
        output,
        kind=f"{stage.kind}-onnx",
        made_from={"dense": dense.path, **schedule},
        command=command_line(),
        packages=PACKAGES,
        preprocessing=_preprocessing(stage, dense),
        tokens_per_block=[block.queries for block in made.blocks],
        results={} if parity is None else {"parity": parity.to_json()},
    )
