"""Files are whole or absent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from slimdeploy.errors import InputError
from slimdeploy.files import atomic_path, check_writable, read_bytes, sha256_file, write_text


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_text(target, "old")

    def fail_halfway() -> None:
        with atomic_path(target) as path:
            path.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_written_file_has_ordinary_permissions(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"
    write_text(target, "new")
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("read", [read_bytes, sha256_file])
def test_what_cannot_be_read_is_named_with_a_remedy(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(
            InputError, match=r": cannot be read \(.*\); check the path and who may"
        ):
            read(path)


def test_targets_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/a.json: cannot be written \("):
        check_writable(tmp_path / "file" / "a.json")
    with pytest.raises(InputError, match="is a folder; name a file"):
        check_writable(tmp_path)
    check_writable(tmp_path / "fine.json")
    assert not (tmp_path / "fine.json").exists()


def test_links_devices_and_pipes_are_not_renamed_over(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_text(target, "kept")
    link, dangling, pipe = (tmp_path / name for name in ("link.json", "none.json", "pipe.json"))
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "absent.json")
    os.mkfifo(pipe)
    for path, reason in (
        (link, "is a link to .*a.json; name the file itself"),
        (dangling, "is a link to .*absent.json"),
        (pipe, "is a device or a pipe; name a file"),
        (Path(os.devnull), "is a device or a pipe; name a file"),
    ):
        for write in (lambda path: write_text(path, "new"), check_writable):
            with pytest.raises(InputError, match=reason):
                write(path)
    assert target.read_text() == "kept"
    assert link.is_symlink()
    assert pipe.is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.json", "link.json", "none.json", "pipe.json"
    }  # fmt: skip
