"""Disks without room, and how a command that meets one must end."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slimdeploy import files
from slimdeploy.cli import main


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file that is written meanwhile can grow beyond `size` bytes."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def full_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that turns out to have no room for the file of this name when it is flushed."""
    flush = os.fsync
    stem, suffix = Path(name).stem, Path(name).suffix

    def refuse(handle: int) -> None:
        found = Path(os.readlink(f"/proc/self/fd/{handle}"))
        temporary = found.name.startswith(f".{stem}.") and found.suffix == suffix
        if found.name == name or temporary:
            raise OSError(28, "No space left on device")
        flush(handle)

    monkeypatch.setattr(files.os, "fsync", refuse)


def error_of(words: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that ends with exit code 2 and gives no result."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    shown = capsys.readouterr()
    assert (caught.value.code, shown.out) == (2, ""), shown.err
    lines = [line for line in shown.err.splitlines() if line.startswith("slimdeploy: error: ")]
    assert len(lines) == 1, shown.err
    assert "Traceback" not in shown.err
    assert ".parts" not in lines[0]
    return lines[0]
