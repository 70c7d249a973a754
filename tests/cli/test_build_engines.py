"""Engines that were damaged since, or lie on a machine that cannot run them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from slimdeploy.cli import main
from slimdeploy.manifest import write_manifest
from tests.cli.commands import PIXELS, RTX, error_line, saved
from tests.graph.vit_text import vit


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its engine and the engine's manifest."""
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    folder = tmp_path_factory.mktemp("made")
    model = saved(vit(), folder / "m.onnx")
    main(["build", str(model), *RTX, "--no-cache", "--output", str(folder / "m.plan")])
    return folder


@pytest.fixture
def plan(made: Path, tmp_path: Path) -> Path:
    """A copy of the engine, for each test to damage."""
    return shutil.copytree(made, tmp_path / "work") / "m.plan"


def flipped(plan: Path) -> None:
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)


def truncated(plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-100])


def emptied(plan: Path) -> None:
    plan.write_bytes(b"")


def without_manifest(plan: Path) -> None:
    plan.with_name("m.plan.json").unlink()


def edited(
    change: Callable[[dict[str, dict[str, dict[str, object]]]], object],
) -> Callable[[Path], None]:
    def edit(plan: Path) -> None:
        manifest = plan.with_name("m.plan.json")
        data = json.loads(manifest.read_text())
        change(data)
        manifest.write_text(json.dumps(data))

    return edit


PLANS: list[tuple[Callable[[Path], None], int, str]] = [
    (flipped, 1, "m.plan: is not the file its manifest describes (sha256"),
    (truncated, 1, "m.plan: is not the file its manifest describes (sha256"),
    (emptied, 1, "m.plan: is not the file its manifest describes (sha256"),
    (without_manifest, 2, "m.plan.json: no such manifest; make m.plan with slimdeploy again"),
    (edited(lambda d: d["results"].pop("build")), 2, "m.plan.json: results.build is missing"),
    (
        edited(lambda d: d["results"]["build"].update(batch=[1, 2])),
        2,
        "m.plan.json: results.build: batch",
    ),
    (Path.unlink, 2, "m.plan: no such file; give the path of an engine"),
]


@pytest.mark.parametrize(("damage", "code", "words"), PLANS)
def test_a_damaged_engine(
    plan: Path,
    damage: Callable[[Path], None],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(plan)
    assert words in error_line(capsys, code, "inspect", plan)
    assert words in error_line(capsys, code, "profile", "--dense", plan, "--slim", plan)


@pytest.mark.usefixtures("no_driver")
def test_engines_are_not_run_without_a_gpu(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_line(capsys, 3, "profile", "--dense", plan, "--slim", plan)
    assert "m.plan: this machine has no NVIDIA driver" in line
    assert "the .onnx runs on the CPU" in line


@pytest.mark.usefixtures("no_driver")
def test_engines_are_not_evaluated_without_a_gpu(
    good: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    write_manifest(good, kind="dense-onnx", made_from={}, command=(), preprocessing=PIXELS)
    plan = good.parent / "m.plan"
    main(["build", str(good), *RTX, "--output", str(plan)])
    capsys.readouterr()
    line = error_line(capsys, 3, "evaluate", plan, "--data-dir", photographs)
    assert "m.plan: this machine has no NVIDIA driver" in line


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_cannot_be_had_is_no_cpu(
    good: Path, provider: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--dense", good, "--slim", good)
    line = error_line(capsys, 3, "profile", *files, "--provider", provider)
    assert "use --provider cpu" in line
