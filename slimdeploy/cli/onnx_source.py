"""A user's own ONNX file as the source of a verb: no torch, no model name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from slimdeploy.cli.common import load_onnx
from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph.anatomy import Anatomy, read_anatomy
from slimdeploy.graph.anatomy.geometry import geometry_of
from slimdeploy.graph.outputs import keep_outputs
from slimdeploy.graph.slimming import prepared
from slimdeploy.manifest import manifest_path, read_manifest
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import ModelGeometry


@dataclass(frozen=True)
class DenseFile:
    """A dense graph, taken apart.

    Attributes:
        path: the file.
        model: its graph, with the wanted outputs only.
        anatomy: blocks, grid, head and tables.
        geometry: the same as a keep schedule holds it.
        preprocessing: of its manifest, if there is one.
    """

    path: Path
    model: onnx.ModelProto
    anatomy: Anatomy
    geometry: ModelGeometry
    preprocessing: Preprocessing | None


def open_dense(path: Path, outputs: tuple[str, ...] = ()) -> DenseFile:
    """Read and analyse an ONNX file.

    Args:
        outputs: names of the outputs to keep; () keeps all.

    Raises:
        InputError: if it is no ONNX file, or a name is no output.
        GraphError: if it is no plain vision transformer; the message names the node and why.
    """
    model = load_onnx(path)
    try:
        keep_outputs(model, outputs)
        anatomy = read_anatomy(prepared(model))
        geometry = geometry_of(anatomy, path.name, outputs)
    except (GraphError, InputError) as error:
        raise type(error)(f"{path}: {error}") from error
    recorded = read_manifest(path).preprocessing if manifest_path(path).is_file() else None
    return DenseFile(path, model, anatomy, geometry, recorded)


def require_droppable(dense: DenseFile) -> None:
    """Refuse a model of which no token can be dropped.

    Raises:
        InputError: with the node that needs them all.
    """
    if dense.anatomy.head.refusal is not None:
        names = [value.name for value in dense.model.graph.output]
        hint = f"; its outputs are {', '.join(names)}: choose with --outputs" * (len(names) > 1)
        raise InputError(
            f"{dense.path}: no token can be dropped: {dense.anatomy.head.refusal}{hint}"
        )
