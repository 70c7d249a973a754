"""A schedule that merges, through the verbs; and files that merge otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.cli import main
from slimdeploy.graph.dynamic import merge_names
from slimdeploy.macs import dense_macs, schedule_macs
from slimdeploy.schedule import KeepSchedule
from tests.cli.test_dynamic_verbs import failed, run


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, photographs: Path
) -> dict[str, Path]:
    """A schedule, its refitted weights, the slim file and the dense one of these weights."""
    folder = tmp_path_factory.mktemp("merge")
    names = ("sched.json", "sched.safetensors", "slim.onnx", "dense.onnx")
    paths = {name: folder / name for name in names}
    commands: list[list[object]] = [
        ["slim", "--model", "test_vit", "--checkpoint", checkpoint, "--data-dir", photographs,
         "--mac-reduction", 0.46, "--dynamic", "merge", "--images", 8, "--output",
         paths["sched.json"]],
        ["export", "--keep-schedule", paths["sched.json"], "--output", paths["slim.onnx"]],
        ["export", "--model", "test_vit", "--checkpoint", paths["sched.safetensors"], "--output",
         paths["dense.onnx"]],
    ]  # fmt: skip
    for words in commands:
        main([str(word) for word in words])
    return paths


def test_the_budget_holds_with_the_merging_in_it(made: dict[str, Path]) -> None:
    schedule = KeepSchedule.read(made["sched.json"])
    assert schedule.dynamic is not None
    assert schedule.dynamic.merges
    assert schedule_macs(schedule).total <= 0.54 * dense_macs(schedule.model).total


def test_slim_export_verify_evaluate(
    made: dict[str, Path], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, sched, slim = ["--data-dir", photographs], made["sched.json"], made["slim.onnx"]
    assert run(capsys, "inspect", sched)["dynamic"] == "merge"
    assert merge_names(onnx.load(slim)) is not None
    proof = run(capsys, "verify", "--slim", slim, "--keep-schedule", sched, *data, "--images", 8)
    assert proof["parity"]["relative"] < 2e-5
    record = run(
        capsys, "verify", "--dense", made["dense.onnx"], "--slim", slim, "--keep-schedule", sched,
        *data, "--images", 4,
    )  # fmt: skip
    assert record["passed"]
    assert any("pairs miss the most similar by" in note for note in record["notes"])
    assert "each the mean of its group" in record["protocol"]["reference"]
    again = tmp_path / "again.onnx"
    words = ["export", "--keep-schedule", sched, "--onnx", made["dense.onnx"], "--output", again]
    main([str(word) for word in words])
    told = capsys.readouterr().out
    assert "differs from the dense graph with each group of patches averaged by" in told
    assert run(capsys, "evaluate", again, *data)["n"] == 16


def test_in_bfloat16_it_is_verified_and_drawn(
    made: dict[str, Path], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low, schedule = tmp_path / "slim.bf16.onnx", made["sched.json"]
    words = ["quantize", made["slim.onnx"], "--precision", "bf16", "--output", low]
    run(capsys, *words, "--calibration", photographs, "--images", 4)
    record = run(
        capsys, "verify", "--dense", made["dense.onnx"], "--slim", low, "--keep-schedule", schedule,
        "--data-dir", photographs, "--images", 2,
    )  # fmt: skip
    assert record["passed"]
    picture = tmp_path / "kept.png"
    words = ["draw", schedule, "--slim", low, "--data-dir", photographs, "--output", picture]
    main([str(word) for word in words])
    assert picture.stat().st_size > 1000


def test_a_probe_cannot_be_compared(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe, schedule = tmp_path / "probe.onnx", made["sched.json"]
    words = ["--keep-schedule", schedule, "--prefix-blocks", 2]
    run(capsys, "export", "--onnx", made["dense.onnx"], *words, "--output", probe)
    check = ["verify", "--dense", made["dense.onnx"], "--slim", probe, "--keep-schedule", schedule]
    code, line = failed(capsys, *check, "--images", 2)
    assert (code, "is a probe, whose tokens are each image's own" in line) == (2, True), line


def test_finetune_trains_it(
    made: dict[str, Path], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sched, tuned, output = made["sched.json"], tmp_path / "t.safetensors", tmp_path / "t.onnx"
    run(
        capsys, "finetune", "--keep-schedule", sched, "--data-dir", photographs, "--epochs", 1,
        "--workers", 0, "--output", tuned,
    )  # fmt: skip
    found = run(
        capsys, "export", "--keep-schedule", sched, "--checkpoint", tuned, "--output", output
    )
    assert found["parity"]["passed"]


def changed(path: Path, op: str, edit: Any) -> onnx.ModelProto:
    """The model at `path` after `edit` of its first node of this kind; only merging has these."""
    model = onnx.load(path)
    edit(model, next(node for node in model.graph.node if node.op_type == op))
    return model


def least_similar(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Of all pairs the least similar merge first."""
    next(item for item in node.attribute if item.name == "largest").i = 0


def all_into_one(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Each merges into the patch that it is least similar to."""
    node.op_type = "ArgMin"


def without_sizes(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Every key counts once."""
    zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    model.graph.initializer.append(zero)
    place = list(model.graph.node).index(node)
    name = node.output[0]
    node.output[0] = f"{name}.log"
    make = onnx.helper.make_node("Mul", [f"{name}.log", "zero"], [name], "none")
    model.graph.node.insert(place + 1, make)


@pytest.mark.parametrize(
    ("op", "edit", "reason"),
    [
        ("TopK", least_similar, "less similar than one that it left"),
        ("ArgMax", all_into_one, "less similar than one that it left"),
        ("Log", without_sizes, ""),
    ],
    ids=["order", "partner", "sizes"],
)
def test_a_file_that_merges_otherwise_fails(
    op: str,
    edit: Any,
    reason: str,
    made: dict[str, Path],
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = tmp_path / "wrong.onnx"
    onnx.save(changed(made["slim.onnx"], op, edit), wrong)
    check = ["verify", "--slim", wrong, "--keep-schedule", made["sched.json"], "--images", 2]
    code, line = failed(capsys, *check, "--dense", made["dense.onnx"])
    assert (code, reason in line) == (1, True), line
    code, line = failed(capsys, *check, "--data-dir", photographs)
    assert (code, reason in line) == (1, True), line


def test_counts_that_would_merge_more_than_pairs_are_refused(
    checkpoint: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = failed(
        capsys, "slim", "--model", "test_vit", "--checkpoint", checkpoint, "--data-dir",
        photographs, "--dynamic", "merge", "--mac-reduction", 0.8, "--shape", "even", "--output",
        tmp_path / "sched.json",
    )  # fmt: skip
    assert code == 2
    assert "no more than every second patch" in line
    assert not list(tmp_path.iterdir())
