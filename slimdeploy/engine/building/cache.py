"""Engines and timings that were computed before: an engine is keyed by all that changes it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from slimdeploy import __version__
from slimdeploy.engine.building.request import BuildRequest
from slimdeploy.engine.gpu import Gpu
from slimdeploy.errors import InputError
from slimdeploy.files import sha256_file, write_bytes

_ENGINE, _REPORT, _DIGEST = "engine", "report.json", "sha256"
_FORMAT = 1


def default_folder() -> Path:
    """Where caches lie unless told otherwise: $XDG_CACHE_HOME/slimdeploy or ~/.cache/slimdeploy.

    Raises:
        InputError: if this user has no home.
    """
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "slimdeploy"
    try:
        return Path.home() / ".cache" / "slimdeploy"
    except RuntimeError as error:  # neither $HOME nor an entry in the system's list of users
        raise InputError(
            "this user has no home folder to keep engines in: choose a folder with --cache-dir"
        ) from error


@dataclass(frozen=True)
class Caches:
    """Where what was computed before lies.

    Attributes:
        folder: of all caches; None takes `default_folder()`.
        timing: a timing cache of one's own, in place of the one in `folder`.
        engines: whether to look for an engine that was built before, and keep a new one.
    """

    folder: Path | None = None
    timing: Path | None = None
    engines: bool = True


def engine_key(
    model: Mapping[str, str], request: BuildRequest, version: str, gpu: Gpu | None
) -> str:
    """A hash of the model's hashes, the request, the backend's version and the GPU.

    Args:
        model: SHA-256 of the ONNX file and of each file of weights beside it, by name: the name
            of the ONNX file itself is left out, since it changes nothing.
    """
    device = None if gpu is None else [gpu.name, list(gpu.compute_capability)]
    fields = [_FORMAT, __version__, sorted(model.items()), request.to_json(), version, device]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class EngineCache:
    """Engines by key, in a folder of their own; the ones not used for longest go first.

    Attributes:
        folder: holds a folder for each engine.
        limit_bytes: all engines together stay below this.
    """

    folder: Path
    limit_bytes: int = 10_000_000_000

    def find(self, key: str, target: Path) -> str | None:
        """Copy the engine to `target` and return its report; None if there is none, or a damaged
        one, which is removed."""
        entry = self.folder / key
        if not (entry / _ENGINE).is_file():
            return None
        try:
            shutil.copyfile(entry / _ENGINE, target)
            report = (entry / _REPORT).read_bytes()
            recorded = (entry / _DIGEST).read_bytes()
        except OSError:
            recorded, report = b"", b""
        if _digest(target, report) != recorded:
            self.drop(key, target)
            return None
        with suppress(OSError):
            os.utime(entry)
        return report.decode()

    def drop(self, key: str, target: Path) -> None:
        """Forget an engine, and remove the copy of it."""
        shutil.rmtree(self.folder / key, ignore_errors=True)
        target.unlink(missing_ok=True)

    def add(self, key: str, engine: Path, report: str) -> None:
        """Keep an engine; raises OSError if the folder cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".", dir=self.folder))
        try:
            shutil.copyfile(engine, made / _ENGINE)
            (made / _REPORT).write_bytes(report.encode())
            (made / _DIGEST).write_bytes(_digest(made / _ENGINE, report.encode()))
            shutil.rmtree(self.folder / key, ignore_errors=True)
            made.rename(self.folder / key)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        self._shrink(key)

    def _shrink(self, newest: str) -> None:
        entries = [path for path in self.folder.iterdir() if (path / _ENGINE).is_file()]
        entries.sort(key=lambda path: (path.name == newest, path.stat().st_mtime))
        sizes = {path: (path / _ENGINE).stat().st_size for path in entries}
        total = sum(sizes.values())
        for path in entries[:-1]:
            if total <= self.limit_bytes:
                return
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]


def _digest(engine: Path, report: bytes) -> bytes:
    """Of both: a report that was cut off would say nothing of its own accord."""
    return hashlib.sha256(sha256_file(engine).encode() + report).hexdigest().encode()


def timing_cache_path(folder: Path, version: str, gpu: Gpu) -> Path:
    """One file for each version of TensorRT and each kind of GPU: another's would mislead."""
    name = "".join(c if c.isalnum() else "-" for c in gpu.name)
    return folder / "timing" / f"tensorrt-{version}-{gpu.sm}-{name}.cache"


def read_timing_cache(path: Path) -> tuple[bytes, str]:
    """The bytes of a timing cache, and what is wrong with it ("" if nothing is).

    A hash lies beside a file that slimdeploy wrote; another program's has none and is tried.
    """
    if not path.is_file():
        return b"", ""
    try:
        data = path.read_bytes()
        beside = digest_path(path)
        recorded = beside.read_text().strip() if beside.is_file() else ""
    except OSError as error:
        return b"", f"{path}: cannot be read ({error.strerror}); built without it"
    if recorded and hashlib.sha256(data).hexdigest() != recorded:
        return b"", f"{path}: damaged (its hash differs); built without it, and written anew"
    return data, ""


def write_timing_cache(path: Path, data: bytes) -> None:
    """Replace a timing cache and the hash beside it.

    Raises:
        InputError: if the folder cannot be written.
    """
    write_bytes(digest_path(path), hashlib.sha256(data).hexdigest().encode())
    write_bytes(path, data)


def digest_path(path: Path) -> Path:
    """The hash that lies beside a timing cache."""
    return path.with_name(path.name + ".sha256")
