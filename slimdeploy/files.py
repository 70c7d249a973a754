"""Files that are whole or absent: atomic writes, hashes, readable failures."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slimdeploy.errors import InputError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that replaces it if the body succeeds.

    The body writes the yielded path; it is flushed to disk and renamed over `target`. If the body
    raises, or the process dies, `target` is as it was and no half-written file bears its name.

    Raises:
        InputError: if the folder does not exist and cannot be made, or cannot be written.
    """
    temporary = _temporary_beside(target)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        # mkstemp, and some writers, make a private file; an artifact is an ordinary one.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder beside `target`, for a file that has parts.

    Whatever the body writes into that folder replaces its namesakes beside `target` if the body
    succeeds, `target` itself last. If the body raises, all is as it was. Of several such contexts,
    one within the other, the innermost files take their names first, when all have been written.

    Raises:
        InputError: as `atomic_path`.
    """
    mark = _temporary_beside(target)  # one set of reasons why a file cannot be written
    folder = mark.with_suffix(".parts")
    try:
        folder.mkdir()
        yield folder / target.name
        paths = sorted(folder.iterdir(), key=lambda path: (path.name == target.name, path.name))
        for path in paths:
            with path.open("rb") as written:
                os.fsync(written.fileno())
            path.chmod(0o666 & ~_umask())
        for path in paths:
            os.replace(path, target.parent / path.name)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            mark.unlink()


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Name `target` where the disk refuses what the body writes for it.

    Raises:
        InputError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror or error}); make room there or choose "
            "another --output"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Let the rename itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary_beside(target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise InputError(f"{target}: is a folder; name a file with --output")
        handle, name = tempfile.mkstemp(
            prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent
        )
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror}); choose another --output"
        ) from error
    os.close(handle)
    return Path(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(target: Path, *inputs: Path | None) -> None:
    """Fail now, not after an hour of work, if `target` could not or should not be written.

    Raises:
        InputError: as `atomic_path`, or if it is one of the files that the command reads.
    """
    for path in inputs:
        if path is not None and path.resolve() == target.resolve():
            raise InputError(f"{target}: is an input of this command too; choose another --output")
    _temporary_beside(target).unlink()


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` atomically.

    Raises:
        InputError: as `atomic_path`.
        OSError: if the disk is full; `disk_errors` says so.
    """
    with atomic_path(target) as path:
        path.write_bytes(data)


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` atomically, as UTF-8."""
    write_bytes(target, text.encode())


def unreadable(path: Path, error: OSError) -> InputError:
    """What to say of a file that cannot be read."""
    return InputError(
        f"{path}: cannot be read ({error.strerror}); check the path and who may read it"
    )


def read_bytes(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's contents.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error
