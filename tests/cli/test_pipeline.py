"""The main job, end to end, on a small model and small photographs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from slimdeploy.cli import main
from slimdeploy.manifest import read_manifest
from slimdeploy.schedule import KeepSchedule

MODEL = ["--model", "test_vit"]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    main([*(str(a) for a in arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def test_slim_finetune_export_verify_evaluate_profile(
    tmp_path: Path, checkpoint: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sched, data = tmp_path / "sched.json", ["--data-dir", photographs]
    found = run(
        capsys, "slim", *MODEL, "--checkpoint", checkpoint, *data, "--mac-reduction", 0.46,
        "--images", 8, "--output", sched,
    )  # fmt: skip
    assert found["mac_reduction"] >= 0.46
    schedule = KeepSchedule.read(sched)
    assert schedule.slim_checkpoint is not None
    assert schedule.slim_checkpoint.path == "sched.safetensors"
    assert {p.name for p in tmp_path.iterdir()} == {"sched.json", "sched.safetensors"}

    tuned = tmp_path / "slim.safetensors"
    run(
        capsys, "finetune", "--keep-schedule", sched, *data, "--epochs", 1, "--workers", 0,
        "--output", tuned, "--save-dtype", "float16", "--output-schedule", tmp_path / "tuned.json",
    )  # fmt: skip
    named = KeepSchedule.read(tmp_path / "tuned.json")
    assert named.keep == schedule.keep
    assert named.slim_checkpoint is not None
    assert named.slim_checkpoint.path == "slim.safetensors"
    slim, dense = tmp_path / "slim.onnx", tmp_path / "dense.onnx"
    made = run(capsys, "export", "--keep-schedule", sched, "--checkpoint", tuned, "--output", slim)
    assert made["tokens_per_block"] == schedule.counts
    run(capsys, "export", *MODEL, "--checkpoint", checkpoint, "--output", dense)
    assert read_manifest(slim).made_from["checkpoint"].path == str(tuned)
    assert read_manifest(slim).preprocessing == schedule.preprocessing

    proof = run(capsys, "verify", "--slim", slim, "--keep-schedule", sched, *data)
    assert proof["parity"]["passed"]
    assert proof["parity"]["relative"] < 2e-5
    assert proof["parity"]["rows"] == 16

    judged = run(capsys, "evaluate", slim, "--dense", dense, *data)
    assert judged["slim"]["n"] == judged["dense"]["n"] == 16
    timed = run(
        capsys, "profile", "--dense", dense, "--slim", slim, "--batch-size", "1,2",
        "--rounds", 5, "--warmup", 1,
    )  # fmt: skip
    assert [row["batch_size"] for row in timed["rows"]] == [1, 2]
    assert all(row["speedup"] > 0 for row in timed["rows"])
    inspected = run(capsys, "inspect", slim)
    assert [block["queries"] for block in inspected["blocks"]] == schedule.counts
    assert inspected["macs"] == pytest.approx(found["slim_macs"], rel=1e-3)


def test_a_file_that_is_not_the_schedules_model_fails_verification(
    tmp_path: Path, checkpoint: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sched, slim = tmp_path / "sched.json", tmp_path / "slim.onnx"
    run(capsys, "plan", *MODEL, "--checkpoint", checkpoint, "--output", sched)
    run(capsys, "export", "--keep-schedule", sched, "--output", slim)
    model = onnx.load(slim)
    weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    values = onnx.numpy_helper.to_array(weight).copy()
    values *= 1.001
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, slim)
    slim.with_name("slim.onnx.json").unlink()
    verify = ["verify", "--slim", slim, "--keep-schedule", sched, "--data-dir", photographs]
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in verify])
    assert caught.value.code == 1
    assert "outputs differ" in capsys.readouterr().err

    other = tmp_path / "other.json"
    run(
        capsys, "plan", *MODEL, "--checkpoint", checkpoint, "--mac-reduction", 0.3,
        "--output", other,
    )  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in ["verify", "--slim", slim, "--keep-schedule", other, *verify[5:]]])
    assert caught.value.code == 1
    assert "block 1 computes" in capsys.readouterr().err


def test_lossless_export_needs_no_schedule(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(
        capsys, "export", *MODEL, "--checkpoint", checkpoint, "--lossless",
        "--output", tmp_path / "lossless.onnx",
    )  # fmt: skip
    assert made["tokens_per_block"] == [101] * 5 + [1]
    assert made["parity"]["relative"] < 2e-5


@pytest.mark.parametrize("reconstruct", ["refit", "gradient"])
def test_a_killed_slim_resumes_to_the_same_schedule(
    tmp_path: Path, checkpoint: Path, photographs: Path, reconstruct: str
) -> None:
    command = [
        sys.executable, "-m", "slimdeploy", "slim", *MODEL, "--checkpoint", str(checkpoint),
        "--data-dir", str(photographs), "--mac-reduction", "0.4", "--images", "8",
        "--reconstruct", reconstruct, "--output",
    ]  # fmt: skip
    whole = tmp_path / "whole" / "sched.json"
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    killed = tmp_path / "killed" / "sched.json"
    work = killed.with_name(".sched.json.work")
    process = subprocess.Popen([*command, str(killed)], stderr=subprocess.DEVNULL)
    while not list(work.glob("layer-*.json")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "killed too late to test anything"
    assert not killed.exists()
    subprocess.run([*command, str(killed)], check=True, capture_output=True)
    one, two = KeepSchedule.read(whole), KeepSchedule.read(killed)
    assert one.layers == two.layers
    assert one.slim_checkpoint is not None
    assert two.slim_checkpoint is not None
    assert one.slim_checkpoint.sha256 == two.slim_checkpoint.sha256
    assert {p.name for p in killed.parent.iterdir()} == {"sched.json", "sched.safetensors"}
