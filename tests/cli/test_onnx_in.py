"""A user's own ONNX file, from inspection to proof, with no torch at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image

from slimdeploy.cli import main
from slimdeploy.manifest import read_manifest
from slimdeploy.schedule import KeepSchedule
from tests.graph.exports import export
from tests.test_light_imports import run_blocked


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A ViT of 17 tokens and 3 blocks."""
    path = tmp_path / "dense.onnx"
    onnx.save(export("plain", "script17", True), path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    main([*(str(a) for a in arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    shown = capsys.readouterr()
    assert (caught.value.code, shown.out) == (code, ""), shown.err
    return shown.err.splitlines()[-1]


def test_plan_export_verify_without_torch(dense: Path) -> None:
    folder = dense.parent
    sched, slim = folder / "sched.json", folder / "slim.onnx"
    commands = [
        ["inspect", dense],
        ["plan", "--onnx", dense, "--mac-reduction", "0.4", "--output", sched],
        ["export", "--keep-schedule", sched, "--output", slim],
        ["verify", "--dense", dense, "--slim", slim, "--keep-schedule", sched],
        ["export", "--onnx", dense, "--lossless", "--output", folder / "lossless.onnx"],
        ["inspect", slim],
    ]
    lines = "\n".join(f"main({[str(word) for word in command]!r})" for command in commands)
    blocked = {"torch", "torchvision", "timm", "safetensors"}
    done = run_blocked(blocked, f"from slimdeploy.cli import main\n{lines}")
    assert done.returncode == 0, done.stderr
    assert "4 x 4 patches" in done.stdout
    assert "differs from the masked dense graph by" in done.stdout
    assert "if some were dropped before, begin with the dense file" in done.stdout
    counts = KeepSchedule.read(sched).counts
    assert counts[-1] == 1
    assert list(read_manifest(slim).tokens_per_block) == counts
    assert set(read_manifest(slim).made_from) == {"dense", "schedule"}


def test_preprocessing_given_to_plan_reaches_the_slim_file(
    dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sched, slim = dense.with_name("sched.json"), dense.with_name("slim.onnx")
    three = ["0.5", "0.5", "0.5"]
    run(capsys, "plan", "--onnx", dense, "--mean", *three, "--std", *three, "--output", sched)
    made = run(capsys, "export", "--keep-schedule", sched, "--output", slim)
    assert made["parity"]["relative"] < 2e-5
    recorded = read_manifest(slim).preprocessing
    assert recorded is not None
    assert (recorded.mean, recorded.input_size) == ((0.5, 0.5, 0.5), (3, 64, 64))


def test_one_schedule_for_the_timm_model_and_for_its_file(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, sched = tmp_path / "dense.onnx", tmp_path / "sched.json"
    timm = ["--model", "test_vit", "--checkpoint", checkpoint]
    run(capsys, "export", *timm, "--output", dense)
    run(capsys, "plan", *timm, "--output", sched)
    made = run(
        capsys, "export", "--onnx", dense, "--keep-schedule", sched,
        "--output", tmp_path / "slim.onnx",
    )  # fmt: skip
    assert made["tokens_per_block"] == KeepSchedule.read(sched).counts
    assert made["parity"]["relative"] < 2e-5
    assert read_manifest(tmp_path / "slim.onnx").preprocessing is not None


@pytest.mark.parametrize("kind", ["average", "map"])
def test_a_pooling_head_has_to_be_told_to_pool_over_less(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, sched = tmp_path / "dense.onnx", tmp_path / "sched.json"
    onnx.save(export(kind, "script17", True), dense)
    plan = ["plan", "--onnx", dense, "--mac-reduction", "0.3", "--output", sched]
    main(["inspect", str(dense)])
    assert "(needs --pool-kept)" in capsys.readouterr().out
    assert "--pool-kept" in fails(capsys, *plan)
    run(capsys, *plan, "--pool-kept")
    assert KeepSchedule.read(sched).pool_kept
    made = run(capsys, "export", "--keep-schedule", sched, "--output", tmp_path / "slim.onnx")
    assert made["tokens_per_block"] == KeepSchedule.read(sched).counts
    assert 1 < made["tokens_per_block"][-1] < 16
    assert made["parity"]["relative"] < 2e-5


def test_several_outputs_are_named(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(dense)
    (first,) = model.graph.output
    model.graph.node.add(op_type="Identity", input=[first.name], output=["again"])
    model.graph.output.add().CopyFrom(first)
    model.graph.output[1].name = "again"
    onnx.save(model, dense)
    main(["inspect", str(dense)])
    told = f"outputs       {first.name}, again: choose with --outputs"
    assert told in capsys.readouterr().out
    main(["inspect", str(dense), "--outputs", "again"])
    assert "choose with" not in capsys.readouterr().out


def test_pool_kept_changes_nothing_where_the_head_reads_one_token(
    dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sched = dense.with_name("sched.json")
    run(capsys, "plan", "--onnx", dense, "--output", sched)
    made = run(
        capsys, "export", "--keep-schedule", sched, "--pool-kept",
        "--output", dense.with_name("slim.onnx"),
    )  # fmt: skip
    assert made["parity"]["passed"]


def test_shapes_of_the_written_graph(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slim, sched = dense.with_name("slim.onnx"), dense.with_name("sched.json")
    run(capsys, "plan", "--onnx", dense, "--output", sched)
    made = run(
        capsys, "export", "--keep-schedule", sched, "--select", "slice-concat",
        "--forbid-op", "Gather,GatherND", "--fixed-batch", "2", "--input-layout", "nhwc",
        "--output", slim,
    )  # fmt: skip
    assert made["parity"]["passed"]
    graph = onnx.load(slim).graph
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert shape == [2, 64, 64, 3]
    assert not [node for node in graph.node if node.op_type == "Gather"]
    probe = dense.with_name("probe.onnx")
    made = run(
        capsys, "export", "--keep-schedule", sched, "--prefix-blocks", "2", "--output", probe
    )
    assert len(made["tokens_per_block"]) == 2
    assert made["notes"] == ["a probe ends inside the model: its numbers were not compared"]


def test_an_operator_that_remains_fails_the_gate_and_writes_nothing(
    dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sched, slim = dense.with_name("sched.json"), dense.with_name("slim.onnx")
    run(capsys, "plan", "--onnx", dense, "--output", sched)
    arguments = ["export", "--keep-schedule", sched, "--forbid-op", "Softmax", "--output", slim]
    assert "Softmax" in fails(capsys, *arguments, code=1)
    assert {p.name for p in dense.parent.iterdir()} == {"dense.onnx", "sched.json"}


def test_bad_input_is_one_line(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sched, slim = dense.with_name("sched.json"), dense.with_name("slim.onnx")
    assert "give --model NAME" in fails(capsys, "plan", "--output", sched)
    assert "no such file" in fails(capsys, "plan", "--onnx", slim, "--output", sched)
    line = fails(capsys, "plan", "--onnx", dense, "--num-classes", "3", "--output", sched)
    assert "--num-classes: goes with --model" in line
    line = fails(capsys, "plan", "--onnx", dense, "--outputs", "x", "--output", sched)
    assert "--outputs x: not an output; there are: logits" in line
    assert not sched.exists()
    run(capsys, "plan", "--onnx", dense, "--output", sched)
    onnx.save(export("distilled", "script17", True), dense)
    line = fails(capsys, "export", "--keep-schedule", sched, "--output", slim)
    assert "is not the file that" in line
    line = fails(capsys, "export", "--onnx", dense, "--keep-schedule", sched, "--output", slim)
    assert "model.prefix has 1 tokens, dense.onnx has 2" in line
    line = fails(
        capsys, "export", "--onnx", dense, "--lossless", "--keep-schedule", sched, "--output", slim
    )
    assert "--lossless takes no --keep-schedule" in line
    line = fails(capsys, "export", "--onnx", dense, "--model", "m", "--output", slim)
    assert "--model: does not go with --onnx" in line
    dense.unlink()
    assert "which are not there; give them with --onnx" in fails(
        capsys, "export", "--keep-schedule", sched, "--output", slim
    )
    assert not slim.exists()


def test_what_is_no_plain_transformer_is_described_with_the_reason(
    dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(dense)
    stem = next(node for node in model.graph.node if node.op_type == "Conv")
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    del model.graph.node[:]
    model.graph.node.extend([*constants, stem])
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(stem.output[0], 1, [None] * 4))
    onnx.save(model, dense)
    found = run(capsys, "inspect", dense)
    assert found["slimmable"] is False
    assert found["reason"].startswith("no transformer block found")


def test_a_dense_file_with_its_channels_last(
    dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last, sched, slim = (dense.with_name(name) for name in ("last.onnx", "sched.json", "slim.onnx"))
    run(capsys, "export", "--onnx", dense, "--input-layout", "nhwc", "--output", last)
    found, original = (run(capsys, "inspect", file)["geometry"] for file in (last, dense))
    assert found | {"name": ""} == original | {"name": ""}
    run(capsys, "plan", "--onnx", last, "--mac-reduction", "0.4", "--output", sched)
    run(capsys, "export", "--keep-schedule", sched, "--output", slim)
    words = ["--slim", slim, "--keep-schedule", sched, "--images", "2"]
    assert run(capsys, "verify", "--dense", dense, *words)["passed"]
    words = ["--keep-schedule", sched, "--input-layout", "nhwc", "--output", slim]
    assert "[B, H, W, C] already" in fails(capsys, "export", *words)


THREE = ["0.5", "0.5", "0.5"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "--opset", "20"], "--opset: does not go with --onnx"),
        (["export", "--exporter", "torchscript"], "--exporter: does not go with --onnx"),
        (["export", "--fused-attention"], "--fused-attention: does not go with --onnx"),
        (["export", "--static-batch"], "--static-batch: does not go with --onnx"),
        (["export", "--tolerance", "0"], "--tolerance 0.0: must be above 0 and below 1"),
        (["export", "--split", "val"], "--split: goes with --data-dir"),
        (["plan", "--crop-pct", "0.9"], "--crop-pct: goes with --mean and --std"),
        (["plan", "--multiple-of", "64"], "counts that are multiples of 64 reach at most"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(
    dense: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *more = arguments
    output = dense.with_name("output.json" if verb == "plan" else "output.onnx")
    assert words in fails(capsys, verb, "--onnx", dense, *more, "--output", output)
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "--mean", *THREE], "--mean: goes with --onnx"),
        (["plan", "--outputs", "x"], "--outputs: goes with --onnx"),
        (["plan", "--pool-kept"], "--pool-kept: goes with --onnx"),
        (["export", "--pool-kept"], "--pool-kept: does not go with a timm model"),
        (["export", "--no-check"], "--no-check: does not go with a timm model"),
    ],
)
def test_a_flag_for_files_is_refused_for_a_timm_model(
    tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *more = arguments
    output = tmp_path / ("output.json" if verb == "plan" else "output.onnx")
    line = fails(capsys, verb, "--model", "test_vit", *more, "--output", output)
    assert words in line


def test_where_a_file_s_schedule_is_of_no_use(
    dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sched, slim = dense.with_name("sched.json"), dense.with_name("slim.onnx")
    run(capsys, "plan", "--onnx", dense, "--output", sched)
    words = ["--keep-schedule", sched, "--data-dir", dense.parent]
    line = fails(capsys, "finetune", *words, "--output", dense.with_name("w.safetensors"))
    assert "sched.json: model.source: is for the ONNX file dense.onnx; training needs" in line
    line = fails(capsys, "verify", "--slim", slim, *words)
    assert "sched.json: model.source: is for the ONNX file dense.onnx; give that file" in line
    line = fails(capsys, "export", "--model", "test_vit", "--checkpoint", dense, "--output", slim)
    assert "dense.onnx: is an ONNX file, not a checkpoint" in line


def test_accuracy_beside_a_dense_file_of_which_nothing_is_recorded(
    dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sched, slim = dense.with_name("sched.json"), dense.with_name("slim.onnx")
    images = image_folder(dense.parent / "images", classes=onnx_classes(dense))
    evaluate = ["evaluate", slim, "--dense", dense, "--data-dir", images]
    run(capsys, "plan", "--onnx", dense, "--output", sched)
    run(capsys, "export", "--keep-schedule", sched, "--output", slim)
    assert "slim.onnx: its manifest records no preprocessing; give --mean" in fails(
        capsys, *evaluate
    )
    line = fails(capsys, "evaluate", dense, "--data-dir", images)
    assert "dense.onnx: no manifest beside it records its preprocessing; give --mean" in line
    given = ["--mean", *THREE, "--std", *THREE]
    alone = run(capsys, "evaluate", dense, "--data-dir", images, *given)
    assert alone.pop("images_seen") is None
    assert run(capsys, *evaluate, *given)["dense"] == alone
    run(capsys, "plan", "--onnx", dense, "--mean", *THREE, "--std", *THREE, "--output", sched)
    run(capsys, "export", "--keep-schedule", sched, "--output", slim)
    found = run(capsys, *evaluate)
    assert found["dense"] == alone


def onnx_classes(path: Path) -> int:
    return int(onnx.load(path).graph.output[0].type.tensor_type.shape.dim[1].dim_value)


def image_folder(root: Path, classes: int) -> Path:
    for index in range(classes):
        folder = root / f"class{index}"
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64), (20 * index, 90, 200)).save(folder / "0.png")
    return root


def test_no_output_replaces_what_is_read(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, manifest = dense.with_name("w.data"), dense.with_name("slim.onnx.json")
    onnx.save(onnx.load(dense), dense, save_as_external_data=True, location=data.name)
    run(capsys, "plan", "--onnx", dense, "--output", manifest)
    before = {path.name: path.read_bytes() for path in dense.parent.iterdir()}
    refused = "is another file that this command"
    assert refused in fails(capsys, "plan", "--onnx", dense, "--output", data)
    line = fails(capsys, "verify", "--dense", dense, "--slim", dense, "--output", data)
    assert f"{data}: {refused}" in line
    words = ["export", "--keep-schedule", manifest, "--output"]
    assert refused in fails(capsys, *words, dense.with_name("slim.onnx"))
    assert f"--output {data}: name an .onnx file" in fails(capsys, *words, data)
    assert {path.name: path.read_bytes() for path in dense.parent.iterdir()} == before


def test_weights_beside_the_file_belong_to_it(
    dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = onnx.load(dense), dense.with_name("w.data")
    onnx.save(model, dense, save_as_external_data=True, location=data.name, size_threshold=0)
    sched, slim = dense.with_name("sched.json"), dense.with_name("slim.onnx")
    run(capsys, "plan", "--onnx", dense, "--output", sched)
    run(capsys, "export", "--keep-schedule", sched, "--output", slim)
    slim.unlink()
    content = bytearray(data.read_bytes())
    content[0] ^= 1  # other weights under the same graph, whose file stays as it was
    data.write_bytes(content)
    line = fails(capsys, "export", "--keep-schedule", sched, "--output", slim)
    assert "dense.onnx: is not the file that" in line
    assert not slim.exists()


def test_a_full_disk_names_the_output(
    dense: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slimdeploy.graph.files.storage._write_message", full)
    slim = dense.with_name("slim.onnx")
    line = fails(capsys, "export", "--onnx", dense, "--lossless", "--output", slim)
    assert line.endswith("slim.onnx: cannot be written (No space left on device); make room there "
                         "or choose another place for it")  # fmt: skip
    assert f"error: {slim}: " in line
    assert [path.name for path in dense.parent.iterdir()] == ["dense.onnx"]
