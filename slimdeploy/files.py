"""Files that are whole or absent: atomic writes, hashes, readable failures."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slimdeploy.errors import InputError, SlimdeployError

TEMPORARY = "slimdeploy-temporary-"
"""What the names of folders begin with that hold nothing but temporary files."""

_PARTS = ".parts"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSALS = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that replaces it if the body succeeds.

    The body writes the yielded path; it is flushed to disk and renamed over `target`. If the body
    raises, or the process dies, `target` is as it was and no half-written file bears its name.

    Raises:
        InputError: if the folder does not exist and cannot be made, or cannot be written, or has no
            room for what the body writes; or if `target` is a link, a device or a pipe.
    """
    temporary = _temporary_beside(target)
    try:
        with disk_errors(target):
            yield temporary
            # mkstemp, and some writers, make a private file; an artifact is an ordinary one.
            _flush(temporary)
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
    folder = mark.with_suffix(_PARTS)
    try:
        with disk_errors(target):
            folder.mkdir()
        yield folder / target.name  # what the disk refuses in the body is not always for `target`
        with disk_errors(target):
            _take_places(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            mark.unlink()


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Name `target` where the disk refuses what the body writes for it.

    Raises:
        InputError: in place of an OSError, or of another library's error that tells of one.
    """
    try:
        yield
    except SlimdeployError:
        raise
    except Exception as error:
        reason = _system_reason(error)
        if reason is None:
            raise
        raise _refused(target, reason, "make room there or ") from error


def disk_refusal(error: OSError) -> str | None:
    """One line about what the disk refused anywhere else; None if it is no fault of the disk's."""
    if error.errno == errno.ENOENT and error.filename is None:  # tempfile found no folder
        return f"{error.strerror}; make room there, allow access to it, or set TMPDIR"
    if error.errno not in _REFUSALS:
        return None
    name = str(error.filename or "stdout, or a temporary file")
    remedy = "make room there" if error.errno in _FULL else "allow access to it"
    moved = ", or set TMPDIR" if error.filename is None or TEMPORARY in name else ""
    return f"{name}: {error.strerror}; {remedy}{moved}"


def _system_reason(error: Exception) -> str | None:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # Libraries written in Rust, as safetensors, put the system's number into their own message.
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number else None


def _refused(target: Path, reason: str | None, room: str = "") -> InputError:
    """The file by the place that it was meant for, which is not where it is written first."""
    folder = target.parent
    if folder.suffix == _PARTS and folder.name.startswith("."):
        folder = folder.parent
    kept = not folder.name.startswith(TEMPORARY)
    remedy = "choose another place for it" if kept else "set TMPDIR"
    return InputError(f"{folder / target.name}: cannot be written ({reason}); {room}{remedy}")


def _flush(path: Path) -> None:
    """To the disk, as an ordinary file."""
    with path.open("rb") as written:
        os.fsync(written.fileno())
    path.chmod(0o666 & ~_umask())


def _take_places(folder: Path, target: Path) -> None:
    paths = sorted(folder.iterdir(), key=lambda path: (path.name == target.name, path.name))
    for path in paths:
        _flush(path)
    for path in paths:
        os.replace(path, target.parent / path.name)
    _sync_folder(target.parent)


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
        _require_replaceable(target)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent
        )
    except OSError as error:
        room = "make room there or " if error.errno in _FULL else ""
        raise _refused(target, error.strerror, room) from error
    os.close(handle)
    return Path(name)


def _require_replaceable(target: Path) -> None:
    """Renaming over a link or a device would not write to it but do away with it."""
    if target.is_symlink():
        raise InputError(f"{target}: is a link to {target.readlink()}; name the file itself")
    if target.is_dir():
        raise InputError(f"{target}: is a folder; name a file")
    if target.exists() and not target.is_file():
        raise InputError(f"{target}: is a device or a pipe; name a file")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(target: Path, *others: Path | None) -> None:
    """Fail now, not after an hour of work, if `target` could not or should not be written.

    Args:
        others: the files that the command reads, and those that it writes beside this one.

    Raises:
        InputError: as `atomic_path`, or if it is one of the others.
    """
    for path in others:
        if path is not None and path.resolve() == target.resolve():
            raise InputError(
                f"{target}: is another file that this command reads or writes; choose another name"
            )
    _temporary_beside(target).unlink()


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` atomically.

    Raises:
        InputError: as `atomic_path`.
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
