"""A disk without room: each verb says so in one line; what belongs together is there or is not.

`quantize`, `export` and `slim --onnx` are in test_whole_results.py.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import pytest

from slimdeploy import store
from slimdeploy.cli import main
from slimdeploy.errors import InputError
from slimdeploy.manifest import verify_manifest
from slimdeploy.schedule import KeepSchedule
from slimdeploy.store import open_store
from tests.cli.classifiers import PIXELS, two_classes
from tests.cli.commands import left, saved
from tests.cli.faults import error_of, full_for, room_for
from tests.graph.vit_text import vit

FULL = "cannot be written (No space left on device); make room there or choose another place"
LARGE = "cannot be written (File too large); make room there or choose another place"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "dense.onnx"
    onnx.save(two_classes(), path)
    return path


@pytest.fixture(scope="module")
def slim(dense: Path) -> Path:
    sched, slim = dense.with_name("sched.json"), dense.with_name("slim.onnx")
    run("plan", "--onnx", dense, "--mac-reduction", 0.3, *PIXELS, "--output", sched)
    run("export", "--keep-schedule", sched, "--output", slim)
    return slim


@pytest.fixture
def timm(checkpoint: Path, photographs: Path, folder: Path) -> list[object]:
    """`slim` of a timm model."""
    return ["slim", "--model", "test_vit", "--checkpoint", checkpoint, "--data-dir", photographs,
            "--mac-reduction", 0.4, "--images", 4, "--output", folder / "s.json"]  # fmt: skip


def run(*words: object) -> None:
    main([str(word) for word in words])


def test_plan(dense: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--onnx", dense, "--output", folder / "s.json"]
    with room_for(100):
        assert f"{folder / 's.json'}: {LARGE}" in error_of(words, capsys)
    assert left(folder) == set()


def test_slim_keeps_its_state_and_goes_on(
    timm: list[object], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with room_for(4000):  # enough for the settings, not for a block's weights
        line = error_of(timm, capsys)
    assert f"{folder / '.s.json.work'}/layer-005.block-5.safetensors: {LARGE}" in line
    assert left(folder) == set()  # nothing was found that a run could go on from
    run(*timm)
    for path in (schedule := folder / "s.json", weights := folder / "s.safetensors"):
        size = path.stat().st_size
        path.unlink()
    capsys.readouterr()
    with room_for(size - 1):  # for every block's weights, not for all together
        line = error_of(timm, capsys)
    assert f"{weights}: {LARGE}" in line
    assert left(folder) == {".s.json.work"}
    run(*timm)
    assert left(folder) == {schedule.name, weights.name}


@pytest.mark.parametrize("more", [(), ("--dynamic", "token-norm")], ids=["static", "dynamic"])
def test_a_schedule_appears_with_its_weights(
    timm: list[object], more: tuple[str, ...], folder: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (folder / "s.safetensors").write_text("old")
    for name in ("s.safetensors", "s.json"):
        with monkeypatch.context() as patch:
            full_for(name, patch)
            assert f"{folder / name}: {FULL}" in error_of([*timm, *more], capsys)
        assert left(folder) - {".s.json.work"} == {"s.safetensors"}
        assert (folder / "s.safetensors").read_text() == "old"


def test_finetune(
    checkpoint: Path, photographs: Path, folder: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    planned = folder.with_name("planned.json")
    run("plan", "--model", "test_vit", "--checkpoint", checkpoint, "--output", planned)
    capsys.readouterr()
    words = ["finetune", "--keep-schedule", planned, "--data-dir", photographs, "--epochs", 1,
             "--workers", 0, "--batch-size", 24, "--output", folder / "t.safetensors",
             "--output-schedule", folder / "t.json"]  # fmt: skip
    with room_for(20_000):
        line = error_of([*words, "--save-every", 1], capsys)
    assert ".t.safetensors.state: the unfinished run cannot be saved, " in line
    assert left(folder) == set()
    for name in ("t.safetensors", "t.json"):
        with monkeypatch.context() as patch:
            full_for(name, patch)
            assert f"{folder / name}: {FULL}" in error_of(words, capsys)
        assert left(folder) <= {".t.safetensors.state"}
    run(*words)
    assert left(folder) == {"t.safetensors", "t.json"}
    assert KeepSchedule.read(folder / "t.json").slim_checkpoint is not None


def test_verify(
    dense: Path, slim: Path, folder: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = ["verify", "--dense", dense, "--slim", slim, "--images", 2, "--keep-schedule",
             dense.with_name("sched.json"), "--output", folder / "v.json"]  # fmt: skip
    with room_for(20_000):  # the masked dense graph is a temporary file
        line = error_of(words, capsys)
    assert line.endswith("model.onnx: cannot be written (File too large); make room there or set "
                         "TMPDIR")  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", "/sys")
        line = error_of(words, capsys)
        assert "error: /sys/slimdeploy-temporary-" in line
        assert line.endswith("; allow access to it, or set TMPDIR")
        patch.setattr(tempfile, "tempdir", None)
        with room_for(0):
            line = error_of(words, capsys)
        assert "No usable temporary directory found in" in line
        assert line.endswith("; make room there, allow access to it, or set TMPDIR")
    full_for("v.json", monkeypatch)
    assert f"{folder / 'v.json'}: {FULL}" in error_of(words, capsys)
    assert left(folder) == set()


@pytest.mark.parametrize("name", ["p.npz", "p.csv"])
def test_evaluate(
    name: str, slim: Path, photographs: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", slim, "--data-dir", photographs, "--predictions", folder / name]
    with room_for(100):
        assert f"{folder / name}: {LARGE}" in error_of(words, capsys)
    assert left(folder) == set()


def test_sweep_goes_on_where_the_disk_was_full(
    dense: Path, photographs: Path, folder: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = ["sweep", "--onnx", dense, "--data-dir", photographs, *PIXELS, "--images", 4,
             "--mac-reduction", 0.3, "--impact", "grid", "--reconstruct", "none", "--no-latency",
             "--output", folder]  # fmt: skip
    for name in ("dense.npz", "point.json", "front.svg"):
        with monkeypatch.context() as patch:
            full_for(name, patch)
            assert f"/{name}: {FULL}" in error_of(words, capsys)
        assert not [path for path in folder.rglob("*") if path.name in (name, f"{name}.json")]
        assert not list(folder.rglob(".*"))
    run(*words)
    verify_manifest(folder / "points" / "grid-0.3-seed0" / "slim.onnx")


def test_build(dense: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with room_for(20_000):
        line = error_of(
            ["build", dense, "--backend", "onnxruntime", "--output", folder / "b.onnx"], capsys
        )
    assert f"{folder / 'b.onnx'}: cannot be written (ONNX Runtime could not write all" in line
    assert left(folder) == set()


def test_build_with_its_layers(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    model = saved(vit(), folder.parent / "vit.onnx")
    words = ["build", model, "--backend", "tensorrt-rtx", "--no-cache", "--output",
             folder / "b.plan", "--layers", folder / "layers.json"]  # fmt: skip
    full_for("layers.json", monkeypatch)
    assert f"{folder / 'layers.json'}: {FULL}" in error_of(words, capsys)
    assert left(folder) == set()


def test_activations_that_do_not_fit() -> None:
    """Where the system would end the process at the first page that has no room."""
    with open_store(budget=0) as store, room_for(4096):
        store.new((4, 256), "float32")[:] = 1
        with pytest.raises(InputError, match=r"2.bin: .*; make room there or set TMPDIR"):
            store.new((5, 256), "float32")


@pytest.mark.parametrize("more", [(), ("--shape", "auto"), ("--dynamic", "predictor")], ids=str)
def test_images_and_activations_on_disk(
    timm: list[object], more: tuple[object, ...], folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The same weights as from memory; without room, one line and nothing left."""
    run(*timm, *more)
    wanted = (folder / "s.safetensors").read_bytes()
    capsys.readouterr()
    for file in folder.iterdir():
        file.unlink()
    temporary = folder.parent / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(store, "BUDGET", 0)
    with room_for(200_000):
        line = error_of([*timm, *more], capsys)
    assert "1.bin: " in line
    assert "make room there or set TMPDIR" in line
    assert not list(temporary.iterdir())
    assert left(folder) <= {".s.json.work"}, "finished layers, to go on from"
    run(*timm, *more)
    assert (folder / "s.safetensors").read_bytes() == wanted
    assert not list(temporary.iterdir())
