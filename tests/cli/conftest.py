"""Folders and models for the tests of `build`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import saved
from tests.graph.vit_text import vit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to build in, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    return work


@pytest.fixture
def good(folder: Path) -> Path:
    return saved(vit(), folder / "m.onnx")


@pytest.fixture
def no_driver() -> None:
    """For what is true of machines without a GPU."""
    from slimdeploy.engine.gpu import gpu_or_none

    if gpu_or_none() is not None:
        pytest.skip("this machine has a GPU")
