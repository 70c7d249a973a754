"""Places that cannot be written: read-only folders, files in place of folders, stdout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import onnx
import pytest

from slimdeploy.cli import main
from tests.cli.classifiers import PIXELS, two_classes
from tests.cli.commands import checked_line, left, run
from tests.cli.faults import error_of

READ_ONLY = Path("/sys")  # even for root

VERBS: dict[str, list[object]] = {
    "plan": ["--onnx", "DENSE", "--output", "OUT.json"],
    "slim": ["--onnx", "DENSE", "--data-dir", "DATA", "--mac-reduction", "0.3",
             *PIXELS, "--output", "OUT.onnx"],
    "slim weights": ["--model", "test_vit", "--data-dir", "DATA", "--output", "FINE/s.json",
                     "--output-checkpoint", "OUT.safetensors"],
    "finetune": ["--keep-schedule", "SCHEDULE", "--data-dir", "DATA", "--output",
                 "OUT.safetensors"],
    "finetune schedule": ["--keep-schedule", "SCHEDULE", "--data-dir", "DATA", "--output",
                          "FINE/t.safetensors", "--output-schedule", "OUT.json"],
    "export": ["--onnx", "DENSE", "--lossless", "--output", "OUT.onnx"],
    "quantize": ["DENSE", "--precision", "fp16", "--output", "OUT.onnx"],
    "verify": ["--dense", "DENSE", "--slim", "DENSE", "--output", "OUT.json"],
    "evaluate": ["DENSE", "--data-dir", "DATA", "--predictions", "OUT.npz"],
    "sweep": ["--onnx", "DENSE", "--data-dir", "DATA", *PIXELS, "--output", "OUT"],
    "build": ["DENSE", "--backend", "onnxruntime", "--output", "OUT.onnx"],
    "build layers": ["DENSE", "--backend", "tensorrt-rtx", "--output", "FINE/b.plan", "--layers",
                     "OUT.json"],
}  # fmt: skip


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    onnx.save(two_classes(), tmp_path / "dense.onnx")
    return tmp_path / "dense.onnx"


@pytest.fixture(scope="module")
def schedule(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schedule") / "planned.json"
    main(["plan", "--model", "test_vit", "--checkpoint", str(checkpoint), "--output", str(path)])
    return path


@pytest.mark.parametrize("place", ["read-only", "below a file"])
@pytest.mark.parametrize("verb", VERBS)
def test_where_nothing_can_be_written(
    verb: str, place: str, dense: Path, schedule: Path, photographs: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = (READ_ONLY if place == "read-only" else dense) / "deep" / "out"
    names = {"DENSE": dense, "SCHEDULE": schedule, "DATA": photographs, "FINE": tmp_path / "fine"}
    words = [verb.split()[0], *map(str, VERBS[verb])]
    for name, path in {**names, "OUT": output}.items():
        words = [word.replace(name, str(path)) for word in words]
    line = error_of([*words], capsys)
    assert f"{output}" in line
    assert ": cannot be written (" in line
    assert line.endswith("); choose another place for it")
    assert left(tmp_path) - {"fine"} == {"dense.onnx"}
    assert not (tmp_path / "fine").exists() or left(tmp_path / "fine") == set()


def test_a_folder_that_is_not_there_is_made(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "deep" / "s.json"
    main(["plan", "--onnx", str(dense), "--output", str(output)])
    assert left(output.parent) == {"s.json"}


@pytest.fixture
def told(dense: Path) -> dict[str, list[object]]:
    timed = ["--rounds", 2, "--batch-size", 1]
    return {
        "doctor": ["doctor"],
        "inspect": ["inspect", dense],
        "profile": ["profile", "--dense", dense, "--slim", dense, *timed, "--json"],
        "plan": ["plan", "--onnx", dense, "--output", dense.with_name("s.json")],
    }


@pytest.mark.parametrize("verb", ["doctor", "inspect", "profile", "plan"])
def test_a_result_that_cannot_be_given(
    verb: str, told: dict[str, list[object]], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        line = error_of(told[verb], capsys)
    assert line.endswith("stdout: cannot be written (No space left on device); make room there or "
                         "send it elsewhere")  # fmt: skip


@pytest.mark.parametrize("words", [["doctor"], ["--help"], ["slim", "--help"]])
def test_a_reader_that_has_gone(
    words: list[str], told: dict[str, list[object]], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as caught:
            main(words)
    assert (caught.value.code, capsys.readouterr().err) == (141, "")


def test_streams_of_a_process_on_a_full_disk(tmp_path: Path) -> None:
    """Nothing more is said, or tried, when the interpreter ends."""
    with Path("/dev/full").open("w") as full:
        process = run(tmp_path, "doctor", stdout=full)
        assert "stdout: cannot be written" in checked_line("", process.communicate()[1])
        assert process.returncode == 2
        process = run(tmp_path, "inspect", "gone.json", stderr=full)
        assert (process.communicate()[0], process.returncode) == ("", 2)
