"""A dynamic schedule through the verbs: slim, inspect, export, verify, finetune, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from slimdeploy.cli import main
from slimdeploy.graph.dynamic import choice_names
from slimdeploy.schedule import KeepSchedule


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    main([*(str(a) for a in arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in lines)
    return int(caught.value.code or 0), lines[-1]


def test_slim_export_verify_finetune_evaluate(
    tmp_path: Path, checkpoint: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sched, slim, dense = (tmp_path / name for name in ("sched.json", "slim.onnx", "dense.onnx"))
    data = ["--data-dir", photographs]
    model = ["--model", "test_vit", "--checkpoint", checkpoint]
    found = run(
        capsys, "slim", *model, *data, "--mac-reduction", 0.46, "--dynamic", "predictor",
        "--shape", "geometric", "--images", 8, "--output", sched,
    )  # fmt: skip
    assert found["mac_reduction"] >= 0.46
    assert run(capsys, "inspect", sched)["dynamic"] == "predictor"
    schedule = KeepSchedule.read(sched)
    assert schedule.slim_checkpoint is not None

    made = run(capsys, "export", "--keep-schedule", sched, "--output", slim)
    assert made["tokens_per_block"] == schedule.counts
    assert made["parity"]["passed"]
    assert choice_names(onnx.load(slim)) is not None
    proof = run(capsys, "verify", "--slim", slim, "--keep-schedule", sched, *data, "--images", 8)
    assert proof["parity"]["relative"] < 2e-5

    # The dense file with the same weights judges it too, and makes the same file without torch.
    weights = tmp_path / "sched.safetensors"
    run(capsys, "export", "--model", "test_vit", "--checkpoint", weights, "--output", dense)
    record = run(
        capsys, "verify", "--dense", dense, "--slim", slim, "--keep-schedule", sched, *data,
        "--images", 4,
    )  # fmt: skip
    assert record["passed"]
    assert any("choices miss the best by" in note for note in record["notes"])
    again = tmp_path / "again.onnx"
    made = run(capsys, "export", "--keep-schedule", sched, "--onnx", dense, "--output", again)
    assert made["parity"]["passed"]
    assert run(capsys, "evaluate", again, *data)["n"] == 16

    tuned = tmp_path / "tuned.safetensors"
    run(
        capsys, "finetune", "--keep-schedule", sched, *data, "--epochs", 1, "--workers", 0,
        "--output", tuned,
    )  # fmt: skip
    made = run(capsys, "export", "--keep-schedule", sched, "--checkpoint", tuned, "--output", again)
    assert made["parity"]["passed"]


@pytest.fixture(scope="module")
def norm_schedule(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, photographs: Path
) -> Path:
    sched = tmp_path_factory.mktemp("dynamic") / "norm.json"
    words: list[object] = [
        "slim", "--model", "test_vit", "--checkpoint", checkpoint, "--data-dir", photographs,
        "--mac-reduction", 0.4, "--dynamic", "token-norm", "--reconstruct", "none",
        "--images", 4, "--output", sched,
    ]  # fmt: skip
    main([str(word) for word in words])
    return sched


def test_a_file_that_chooses_otherwise_fails(
    tmp_path: Path,
    norm_schedule: Path,
    checkpoint: Path,
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The smallest in place of the largest: all numbers are right, only the choice is wrong."""
    slim, dense = tmp_path / "slim.onnx", tmp_path / "dense.onnx"
    run(capsys, "export", "--keep-schedule", norm_schedule, "--output", slim)
    model = onnx.load(slim)
    node = next(node for node in model.graph.node if node.op_type == "ReduceSumSquare")
    negated = f"{node.output[0]}.negated"
    reader = next(n for n in model.graph.node if node.output[0] in n.input)
    place = list(model.graph.node).index(reader)
    model.graph.node.insert(
        place, onnx.helper.make_node("Neg", [node.output[0]], [negated], "negated")
    )
    reader.input[list(reader.input).index(node.output[0])] = negated
    wrong = tmp_path / "wrong.onnx"
    onnx.save(model, wrong)
    code, line = failed(
        capsys, "verify", "--slim", wrong, "--keep-schedule", norm_schedule, "--data-dir",
        photographs, "--images", 4,
    )  # fmt: skip
    assert code == 1
    assert "left out a patch that scores" in line
    run(capsys, "export", "--model", "test_vit", "--checkpoint", checkpoint, "--output", dense)
    check = ["verify", "--dense", dense, "--keep-schedule", norm_schedule, "--images", 2]
    code, line = failed(capsys, *check, "--slim", wrong)
    assert code == 1
    assert "left out a patch that scores" in line
    assert run(capsys, *check, "--slim", slim)["passed"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --mac-reduction and --tolerance"),
        (["--mac-reduction", 0.4, "--step", 3], "--step: goes with --tolerance, not with --mac"),
        (
            [
                "--mac-reduction",
                0.4,
                "--reconstruct",
                "none",
                "--output-checkpoint",
                "w.safetensors",
            ],
            "--output-checkpoint: --reconstruct none leaves the weights as they are",
        ),
    ],
)
def test_flags_of_a_static_search_are_refused_before_a_file_is_read(
    flags: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = failed(capsys, "slim", "--model", "none", "--data-dir", "absent", *flags)
    assert (code, message in line) == (2, True), line


def test_select_is_refused(
    tmp_path: Path, norm_schedule: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.onnx"
    code, line = failed(
        capsys, "export", "--keep-schedule", norm_schedule, "--select", "slice", "--output", output
    )
    assert code == 2
    assert "--select slice: is for positions known beforehand" in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tolerance", 0.1], "--tolerance: does not go with --dynamic"),
        (["--impact", "path", "--mac-reduction", 0.4], "--impact: does not go with --dynamic"),
        (["--search-images", 9, "--mac-reduction", 0.4], "--search-images: does not go with --dyn"),
        (["--reconstruct", "gradient", "--mac-reduction", 0.4], "--reconstruct gradient: does not"),
        ([], "--dynamic: give a budget with --mac-reduction"),
        (["--mac-reduction", 1.5], "--mac-reduction 1.5: must be at least 0 and below 1"),
    ],
)
def test_flags_of_the_search_are_refused(
    flags: list[object],
    message: str,
    tmp_path: Path,
    checkpoint: Path,
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, line = failed(
        capsys, "slim", "--model", "test_vit", "--checkpoint", checkpoint, "--data-dir",
        photographs, "--dynamic", "key-norm", *flags, "--output", tmp_path / "sched.json",
    )  # fmt: skip
    assert code == 2
    assert message in line
    assert not list(tmp_path.iterdir())
