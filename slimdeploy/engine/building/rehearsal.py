"""What would keep a build from coming about, found without building."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slimdeploy.engine.building.request import BuildRequest
from slimdeploy.engine.gpu import find_gpu
from slimdeploy.engine.tokens import check_tokens, graph_tokens
from slimdeploy.errors import requires
from slimdeploy.manifest import manifest_path, read_manifest


def rehearse(
    model: Path, request: BuildRequest, expected: Sequence[int] | None, expected_by: Path | None
) -> None:
    """Check that the backend and its GPU are here, and the tokens as far as the graph tells them.

    Args:
        model: an ONNX file; `model_inputs` has approved of it.
        expected, expected_by: as `build_engine` takes them.

    Raises:
        MissingError: if this machine lacks what builds.
        InputError, GateError: if the expected tokens are another model's.
    """
    _require_backend(request)
    expected, expected_by = awaited_tokens(model, expected, expected_by)
    if expected is None:
        return
    blocks, all_told = graph_tokens(model)
    if all_told or len(blocks) == len(expected):
        check_tokens(str(model), [block.queries for block in blocks], expected, str(expected_by))


def awaited_tokens(
    model: Path, expected: Sequence[int] | None, expected_by: Path | None
) -> tuple[Sequence[int] | None, Path | None]:
    """The tokens that blocks must compute, and the file that says so: the model's manifest if no
    other was given; None if nothing says so."""
    if expected is None and manifest_path(model).is_file():
        source = read_manifest(model)
        if source.tokens_per_block:
            return source.tokens_per_block, manifest_path(model)
    return expected, expected_by


def _require_backend(request: BuildRequest) -> None:
    if request.backend == "onnxruntime":
        from slimdeploy.engine.sessions import check_available

        with requires("cpu"):
            import onnxruntime

        if request.provider != "cpu":
            find_gpu()
        check_available(onnxruntime.get_available_providers(), request.provider)
        return
    from slimdeploy.engine.building.with_tensorrt import require_tensorrt

    require_tensorrt(request.backend)
