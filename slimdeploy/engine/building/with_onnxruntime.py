"""ONNX Runtime's own build: the model as its optimiser leaves it, for an asserted provider."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdeploy.engine.building.places import weights_path
from slimdeploy.engine.building.report import BuildReport
from slimdeploy.engine.building.request import BuildRequest
from slimdeploy.engine.gpu import find_gpu
from slimdeploy.engine.host import usable_cores
from slimdeploy.engine.onnxruntime import tensor_info
from slimdeploy.engine.protocol import TensorInfo
from slimdeploy.engine.sessions import PROVIDERS, open_session, session_options
from slimdeploy.engine.tokens import graph_tokens
from slimdeploy.engine.trt.parse import Attention
from slimdeploy.errors import InputError, MissingError, one_line, requires
from slimdeploy.measure.onnx_file import external_files, load_structure

if TYPE_CHECKING:
    import onnx

_LARGE = 1_500_000_000
"""Beyond this many bytes weights go beside the model: one file may hold no more than 2 GB."""


@dataclass
class OnnxRuntimeBuild:
    """See the module."""

    model: Path
    request: BuildRequest

    def run(self, target: Path) -> BuildReport:
        """Write the optimised model to `target`.

        Raises:
            InputError: if ONNX Runtime cannot load the model.
            MissingError: if it is not installed or the provider cannot be had.
        """
        with requires("cpu"):
            import onnxruntime

        gpu = None if self.request.provider == "cpu" else find_gpu()
        options = self.options(target)
        began = time.perf_counter()
        session = open_session(self.model, str(self.model), self.request.provider, options)
        seconds = time.perf_counter() - began
        if not target.is_file():
            raise MissingError(
                f"{self.model}: onnxruntime {onnxruntime.__version__} wrote no optimised model for "
                f"{PROVIDERS[self.request.provider]}: use the .onnx itself"
            )
        require_whole(target)
        return BuildReport(
            version=onnxruntime.__version__,
            gpu=gpu,
            targets=session.get_providers()[0],
            inputs=tuple(tensor_info(node) for node in session.get_inputs()),
            outputs=tuple(tensor_info(node) for node in session.get_outputs()),
            attentions=_attentions(target) or graph_tokens(self.model)[0],
            build_seconds=seconds,
        )

    def options(self, target: Path) -> Any:
        """Of the session that writes the optimised model to `target`."""
        import onnxruntime

        options = session_options(usable_cores())
        # Beyond this level weights are laid out for this very CPU, and wrong on another, unnoticed;
        # loading lays them out for the CPU it happens on.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        if self.request.provider == "tensorrt":  # what is kept is the engine within a model
            options.add_session_config_entry("ep.context_enable", "1")
            options.add_session_config_entry("ep.context_file_path", str(target))
            options.add_session_config_entry("ep.context_embed_mode", "1")
            return options
        options.optimized_model_filepath = str(target)
        parts = external_files(load_structure(self.model))
        # Weights left where they lie would be sought beside the new model, where they are not.
        if parts or self.model.stat().st_size > _LARGE:
            key = "session.optimized_model_external_initializers_file_name"
            options.add_session_config_entry(key, weights_path(target).name)
        return options


def require_whole(model: Path) -> None:
    """Refuse a model whose engine is in a file of its own, under a name that ONNX Runtime chose.

    It was told to put the engine into the model; that it does so was never seen on a GPU.

    Raises:
        MissingError: naming the file.
    """
    from slimdeploy.graph.files.storage import parse_model

    for node in parse_model(model).graph.node:
        fields = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "EPContext" and "embed_mode" in fields and not fields["embed_mode"].i:
            raise MissingError(
                f"{model.name}: this onnxruntime left the engine outside the model, in "
                f"'{fields['ep_cache_context'].s.decode()}': use --backend tensorrt"
            )


def _attentions(path: Path) -> tuple[Attention, ...]:
    """Token counts of the optimised model: the shapes of its softmaxes when it runs.

    () if it has none: another provider's engine, or attention in one operator.
    """
    import onnx

    from slimdeploy.graph.files.storage import parse_model

    model = parse_model(path)
    nodes = [node for node in model.graph.node if node.op_type == "Softmax"]
    if not nodes:
        return ()
    for node in nodes:
        model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    shapes = _shapes(model, path, [node.output[0] for node in nodes])
    return tuple(
        Attention(node.name, shape[-2], shape[-1])
        for node, shape in zip(nodes, shapes, strict=True)
        if len(shape) >= 3
    )


def _shapes(model: onnx.ModelProto, path: Path, names: list[str]) -> list[tuple[int, ...]]:
    """Shapes of these tensors for one image, by running a copy of the model that gives them out."""
    import numpy as np

    copy = path.with_name("." + path.name)  # beside it: weights may lie in a second file
    copy.write_bytes(model.SerializeToString())
    try:
        session = open_session(copy, path.name, "cpu", session_options(usable_cores()))
        inputs = [tensor_info(node) for node in session.get_inputs()]
        feeds = {info.name: np.zeros(_one(info), info.dtype) for info in inputs}
        return [tuple(y.shape) for y in session.run(names, feeds)]
    except InputError:
        raise
    except Exception as error:  # ONNX Runtime's errors share no other base class
        raise InputError(f"{path}: the optimised model does not run: {one_line(error)}") from error
    finally:
        copy.unlink(missing_ok=True)


def _one(info: TensorInfo) -> tuple[int, ...]:
    return tuple(1 if size is None else size for size in info.shape)
