"""Tests of the ELPV data script."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "prepare_elpv.py"


def load_script() -> ModuleType:
    """Import the script, which is no part of a package, from its file."""
    spec = importlib.util.spec_from_file_location("prepare_elpv", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = load_script()
SOURCE = script.package_folder()
needs_data = pytest.mark.skipif(SOURCE is None, reason="the elpv-dataset package is not installed")


def files_of(folder: Path) -> list[str]:
    """List the photographs of one split."""
    return sorted(path.name for path in folder.glob("*/*.png"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the script once."""
    output = tmp_path_factory.mktemp("elpv") / "split"
    assert script.main(["--output", str(output)]) == 0
    return output


@needs_data
def test_split_is_disjoint_and_complete(prepared: Path) -> None:
    names = [name for split in script.SPLITS for name in files_of(prepared / split)]
    assert len(names) == len(set(names)) == 2624
    assert set(names) == {cell.path.name for cell in script.read_cells(SOURCE)}
    assert not list(prepared.parent.glob(".*")), "a temporary folder was left behind"


@needs_data
def test_split_is_stratified(prepared: Path) -> None:
    cells = script.read_cells(SOURCE)
    strata = Counter((cell.probability, cell.kind) for cell in cells)
    by_name = {cell.path.name: cell for cell in cells}
    for split, fraction in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        members = [by_name[name] for name in files_of(prepared / split)]
        counts = Counter((cell.probability, cell.kind) for cell in members)
        for stratum, total in strata.items():
            assert abs(counts[stratum] - fraction * total) <= 1.5


@needs_data
def test_class_folders_follow_the_annotations(prepared: Path) -> None:
    by_name = {cell.path.name: cell for cell in script.read_cells(SOURCE)}
    for path in prepared.glob("*/*/*.png"):
        expected = "defective" if by_name[path.name].probability > 0.5 else "functional"
        assert path.parent.name == expected


@needs_data
def test_photographs_are_copied_unchanged(prepared: Path) -> None:
    assert SOURCE is not None
    for path in list(prepared.glob("test/*/*.png"))[:10]:
        assert path.read_bytes() == (SOURCE / "images" / path.name).read_bytes()


@needs_data
def test_second_run_leaves_a_complete_folder_alone(prepared: Path) -> None:
    marker = prepared / "marker"
    marker.touch()
    assert script.main(["--output", str(prepared)]) == 0
    assert marker.exists()
    marker.unlink()


@needs_data
def test_split_is_reproducible_and_depends_on_the_seed() -> None:
    cells = script.read_cells(SOURCE)
    first = script.describe(script.split_cells(cells, 0), 0)
    again = script.describe(script.split_cells(cells[::-1], 0), 0)
    other = script.describe(script.split_cells(cells, 1), 1)
    assert first == again
    assert first["files_sha256"] != other["files_sha256"]


@needs_data
def test_incomplete_folder_is_rebuilt(tmp_path: Path) -> None:
    output = tmp_path / "split"
    assert script.main(["--output", str(output)]) == 0
    next(output.glob("val/*/*.png")).unlink()
    assert script.main(["--output", str(output)]) == 0
    counts = json.loads((output / "split.json").read_text())["counts"]
    assert len(files_of(output / "val")) == sum(counts["val"].values())


@needs_data
def test_foreign_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious.txt").touch()
    assert script.main(["--output", str(tmp_path)]) == script.EXIT_USAGE
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "precious.txt").exists()


def test_missing_package_is_one_line_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "package_folder", lambda: None)
    assert script.main(["--output", str(tmp_path / "out")]) == script.EXIT_MISSING_PACKAGE
    message = capsys.readouterr().err.strip()
    assert "pip install elpv-dataset" in message
    assert len(message.splitlines()) == 1


def test_bad_usage_exits_with_2() -> None:
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, check=False)
    assert run.returncode == 2
