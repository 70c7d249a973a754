"""Which files a build reads and which it writes, told apart before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from slimdeploy.engine.building.cache import Caches, default_folder, digest_path
from slimdeploy.engine.building.request import Backend, check_output
from slimdeploy.errors import InputError
from slimdeploy.files import check_writable
from slimdeploy.graph.files.storage import parse_model
from slimdeploy.manifest import manifest_path
from slimdeploy.measure.onnx_file import external_files


def check_places(
    model: Path,
    output: Path,
    backend: Backend,
    *,
    schedule: Path | None = None,
    layers: Path | None = None,
    caches: Caches | None = None,
) -> None:
    """Refuse a build that would write over a file that it reads or writes already.

    Args:
        schedule: the file that says what is expected.
        layers: the file that the kernels are written to.

    Raises:
        InputError: naming that file, an option that the backend has no use for, or a place where
            nothing can be written; if there is no place for caches, or `model` cannot be read.
    """
    caches = caches or Caches()
    check_output(output, backend)
    _check_used(backend, layers, caches)
    if backend != "onnxruntime" and caches.folder is None:
        default_folder()
    parts = external_files(parse_model(model))
    taken = [model, manifest_path(model), *(model.parent / name for name in parts)]
    taken += [schedule] if schedule is not None else []
    for path, must in _written(output, backend, layers, caches):
        if path.resolve() in {other.resolve() for other in taken}:
            raise InputError(
                f"{path}: is another file that this command reads or writes; choose another name"
            )
        if must:
            check_writable(path)
        taken.append(path)


def _written(
    output: Path, backend: Backend, layers: Path | None, caches: Caches
) -> Iterator[tuple[Path, bool]]:
    """Each file, and whether the build fails without it: timings that are not kept are a note."""
    yield output, True
    yield manifest_path(output), True
    if backend == "onnxruntime":
        yield weights_path(output), False
    if layers is not None:
        yield layers, True
    if caches.timing is not None:
        yield caches.timing, False
        yield digest_path(caches.timing), False


def weights_path(output: Path) -> Path:
    """Where an optimised model's weights lie if they are not in it."""
    return output.with_name(output.name + ".data")


def _check_used(backend: Backend, layers: Path | None, caches: Caches) -> None:
    """Files of one backend that another would not look at."""
    if caches.timing is not None and backend != "tensorrt":
        raise InputError(f"--timing-cache: is for --backend tensorrt, not {backend}")
    if backend != "onnxruntime":
        return
    for flag, path in (("--cache-dir", caches.folder), ("--layers", layers)):
        if path is not None:
            raise InputError(f"{flag}: is for the TensorRT backends, not onnxruntime")
