"""`slim --onnx`: a dense file and a folder of images in, a slim file out, with no torch at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.cli import main
from slimdeploy.images import ImageFolder
from slimdeploy.manifest import read_manifest, verify_manifest
from slimdeploy.schedule import KeepSchedule
from tests.graph.exports import export, run
from tests.test_light_imports import run_blocked

HALF = ["0.5", "0.5", "0.5"]
PIXELS = ["--mean", *HALF, "--std", *HALF]


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A ViT of 17 tokens and 3 blocks, with LayerScale."""
    path = tmp_path / "dense.onnx"
    onnx.save(export("layerscale", "dynamo23", True), path)
    return path


def slim(capsys: pytest.CaptureFixture[str], dense: Path, data: Path, *more: object) -> Any:
    words = ["--onnx", dense, "--data-dir", data, "--mac-reduction", "0.3", *PIXELS, *more]
    main(["slim", *(str(word) for word in words), "--json"])
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    shown = capsys.readouterr()
    assert (caught.value.code, shown.out) == (code, ""), shown.err
    return shown.err.splitlines()[-1]


def test_slim_and_verify_without_torch(dense: Path, photographs: Path) -> None:
    folder = dense.parent
    out, again = folder / "slim.onnx", folder / "refitted.onnx"
    commands = [
        ["slim", "--onnx", dense, "--data-dir", photographs, "--mac-reduction", "0.3", *PIXELS,
         "--impact", "path", "--output", out, "--output-checkpoint", again],
        ["verify", "--dense", again, "--slim", out, "--keep-schedule", folder / "slim.json"],
        ["inspect", out],
    ]  # fmt: skip
    lines = "\n".join(f"main({[str(word) for word in command]!r})" for command in commands)
    blocked = {"torch", "torchvision", "timm", "safetensors"}
    done = run_blocked(blocked, f"from slimdeploy.cli import main\n{lines}")
    assert done.returncode == 0, done.stderr
    assert "after the refit: relative error" in done.stdout.replace("\n", " ")
    assert "PASSED against" in done.stdout
    assert "layer 1: keeps" in done.stderr
    assert "block 3: refitted" in done.stderr


def test_what_is_written(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = dense.with_name("small.onnx")
    made = slim(capsys, dense, photographs, "--output", out, "--impact", "attention", "--seed", 4)
    schedule, manifest = KeepSchedule.read(out.with_suffix(".json")), verify_manifest(out)
    assert made["counts"] == schedule.counts == list(manifest.tokens_per_block)
    assert made["mac_reduction"] >= 0.3
    assert (schedule.model.source, schedule.model.name) == ("onnx", "dense.onnx")
    told = schedule.provenance
    assert (told.impact, told.reconstruct, told.seed, told.images) == ("attention", "refit", 4, 22)
    assert told.data is not None
    assert schedule.checkpoint is not None
    assert schedule.checkpoint.path == "dense.onnx"
    assert schedule.preprocessing == manifest.preprocessing is not None
    assert set(manifest.made_from) == {"dense", "schedule"}
    held = made["held_out"]
    assert held["before"]["images"] == held["after"]["images"] == 2
    assert held["after"]["head_input"] != held["before"]["head_input"]
    assert made["parity"]["relative"] < 2e-5
    assert made["parity_before_refit"]["relative"] < 2e-5


def test_it_is_fitted_to_the_images_that_are_asked_for_and_measured_on_others(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, train = dense.with_name("small.onnx"), ImageFolder.open(photographs, "train")
    for asked, fitted, held in ((17, 17, 2), (7, 7, None), (24, 22, 2)):
        options = ["--output", out, "--images", asked, "--seed", 3]
        made = slim(capsys, dense, photographs, *options)
        told = KeepSchedule.read(out.with_suffix(".json")).provenance
        assert (told.images, told.data) == (fitted, train.sample(fitted, 3).digest())
        assert (made["held_out"]["after"] or {}).get("images") == held


def test_without_refit_it_is_what_export_makes_of_the_schedule(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = dense.with_name("slim.onnx"), dense.with_name("exported.onnx")
    sched = dense.with_name("tokens.json")
    options = ["--reconstruct", "none", "--output-schedule", sched, "--select", "slice"]
    made = slim(capsys, dense, photographs, "--output", out, *options)
    assert made["held_out"]["after"] is None
    main(["export", "--keep-schedule", str(sched), "--output", str(other)])
    capsys.readouterr()
    images = np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype(np.float32)
    found, wanted = run(onnx.load(out), images), run(onnx.load(other), images)
    assert np.abs(found - wanted).max() < 2e-5 * np.abs(wanted).max()
    slim(capsys, dense, photographs, "--output", out)
    refitted = run(onnx.load(out), images)
    assert np.abs(refitted - wanted).max() > 1e-2 * np.abs(wanted).max()


def test_equal_commands_give_equal_files(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for name in ("a", "b"):
        out = dense.with_name(f"{name}.onnx")
        slim(capsys, dense, photographs, "--output", out, "--optimize", "--impact", "path")
        files.append(out.read_bytes())
    assert files[0] == files[1]


def test_a_pooling_head_and_a_recorded_preprocessing(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, out = tmp_path / "dense.onnx", tmp_path / "slim.onnx"
    onnx.save(export("average", "script17", True), dense)
    words = ["slim", "--onnx", dense, "--data-dir", photographs, "--mac-reduction", "0.3"]
    assert "--pool-kept lets it pool" in fails(capsys, *words, *PIXELS, "--output", out)
    assert not out.exists()
    made = slim(capsys, dense, photographs, "--pool-kept", "--output", out, "--impact", "path")
    assert 1 < made["counts"][-1] < 16
    assert KeepSchedule.read(out.with_suffix(".json")).pool_kept
    recorded = read_manifest(out)
    manifest = dense.with_name("dense.onnx.json")
    text = recorded.model_dump_json().replace('"slim.onnx"', '"dense.onnx"')
    manifest.write_text(text)
    main([*map(str, words), "--pool-kept", "--output", str(out), "--json"])
    assert read_manifest(out).preprocessing == recorded.preprocessing


def test_each_image_may_choose_its_own_patches_without_torch(
    dense: Path, photographs: Path
) -> None:
    out, again = dense.with_name("slim.onnx"), dense.with_name("refitted.onnx")
    schedule = dense.with_name("slim.json")
    commands = [
        ["slim", "--onnx", dense, "--data-dir", photographs, "--mac-reduction", "0.3", *PIXELS,
         "--dynamic", "predictor", "--output", out, "--output-checkpoint", again],
        ["verify", "--dense", again, "--slim", out, "--keep-schedule", schedule],
        ["export", "--keep-schedule", schedule, "--onnx", again,
         "--output", dense.with_name("same.onnx")],
    ]  # fmt: skip
    lines = "\n".join(f"main({[str(word) for word in command]!r})" for command in commands)
    blocked = {"torch", "torchvision", "timm", "safetensors"}
    done = run_blocked(blocked, f"from slimdeploy.cli import main\n{lines}")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "each image chooses its own patches, by predictor" in said
    assert "after the refit: relative error" in said
    assert "PASSED against" in said
    told = KeepSchedule.read(schedule)
    assert told.dynamic is not None
    assert (told.provenance.impact, told.provenance.reconstruct) == (None, "refit")
    assert list(verify_manifest(out).tokens_per_block or ()) == told.counts
    assert any(node.op_type == "TopK" for node in onnx.load(out).graph.node)


def test_a_choice_per_image_needs_a_head_that_reads_single_tokens(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = tmp_path / "dense.onnx"
    onnx.save(export("average", "script17", True), dense)
    words = ["slim", "--onnx", dense, "--data-dir", photographs, "--mac-reduction", "0.3", *PIXELS]
    line = fails(capsys, *words, "--dynamic", "predictor", "--output", tmp_path / "slim.onnx")
    assert "dense.onnx: its head pools over 16 tokens; --dynamic is" in line


WRONG = [
    ([], "give --mac-reduction"),
    (["--mac-reduction", "0.3"], "dense.onnx: no manifest beside it records its preprocessing"),
    (["--mac-reduction", "0.3", "--mean", *HALF], "--mean and --std: give both, or neither"),
    (["--mac-reduction", "0.99", *PIXELS], "--mac-reduction 0.99: geometric counts reach at most"),
    (["--mac-reduction", "0.3", *PIXELS, "--impact", "joint"], "--impact joint: needs --model"),
    (["--mac-reduction", "0.3", *PIXELS, "--reconstruct", "gradient"], "--reconstruct gradient"),
    (["--mac-reduction", "0.3", *PIXELS, "--model", "test_vit"], "--model: does not go with"),
    (["--tolerance", "0.1"], "--tolerance: does not go with --onnx"),
    (["--mac-reduction", "0.3", *PIXELS, "--ridge", "0"], "--ridge 0.0: must be above 0"),
    (
        ["--mac-reduction", "0.3", *PIXELS, "--ridge", "weak"],
        "--ridge weak: must be a number above 0, or auto",
    ),
    (["--mac-reduction", "0.3", "--crop-pct", "0.9"], "--crop-pct: goes with --mean and --std"),
    (
        ["--mac-reduction", "0.3", "--interpolation", "nearest"],
        "--interpolation: goes with --mean and --std",
    ),
    (["--mac-reduction", "0.3", *PIXELS, "--images", "0"], "for --images. Must be >= 1"),
    (
        ["--mac-reduction", "0.3", *PIXELS, "--search-images", "0"],
        "for --search-images. Must be >= 1",
    ),
    (["--mac-reduction", "0.3", *PIXELS, "--outputs", "z"], "--outputs z: not an output"),
    *(
        (
            ["--mac-reduction", "0.3", *PIXELS, "--dynamic", "predictor", *flag],
            f"{flag[0]}: does not",
        )
        for flag in (
            ["--impact", "path"],
            ["--search-images", "9"],
            ["--select", "slice"],
            ["--pool-kept"],
        )
    ),
]


@pytest.mark.parametrize(("more", "words"), WRONG)
def test_bad_input_is_one_line_and_leaves_nothing(
    more: list[str], words: str, dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = dense.with_name("slim.onnx")
    arguments = ["slim", "--onnx", dense, "--data-dir", photographs, "--output", out, *more]
    assert words in fails(capsys, *arguments)
    assert {path.name for path in dense.parent.iterdir()} == {"dense.onnx"}


def test_files_that_must_not_be_written(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["slim", "--onnx", dense, "--data-dir", photographs, "--mac-reduction", "0.3", *PIXELS]
    assert "is another file that this command" in fails(capsys, *words, "--output", dense)
    line = fails(capsys, *words, "--output", dense.with_name("slim.engine"))
    assert "name an .onnx file" in line
    line = fails(capsys, *words, "--output-schedule", dense.with_name("dense.onnx.json"))
    assert "is another file that this command" in line
    assert {path.name for path in dense.parent.iterdir()} == {"dense.onnx"}
    assert "give --model NAME" in fails(capsys, "slim", "--data-dir", photographs)
    line = fails(capsys, "slim", "--model", "m", "--data-dir", photographs, "--select", "slice")
    assert "--select: does not go with --model" in line


def test_a_refitted_schedule_with_the_weights_of_before_is_told(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again = dense.with_name("slim.onnx"), dense.with_name("refitted.onnx")
    slim(capsys, dense, photographs, "--output", out, "--output-checkpoint", again)
    schedule = out.with_suffix(".json")
    hint = "has those from before the refit; `slim --output-checkpoint refitted.onnx` writes"

    def exported(*more: object) -> Any:
        other = dense.with_name("other.onnx")
        words = ["export", "--keep-schedule", schedule, "--output", other, *more, "--json"]
        main([str(word) for word in words])
        return json.loads(capsys.readouterr().out)["notes"]

    assert any(hint in note for note in exported())
    assert not exported("--onnx", again)
    strange = dense.with_name("strange.onnx")
    onnx.save(export("layerscale", "dynamo18", True), strange)
    assert any("made for other weights than" in note for note in exported("--onnx", strange))
    check = ["verify", "--slim", out, "--keep-schedule", schedule, "--dense"]
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in [*check, dense]])
    told = capsys.readouterr()
    assert caught.value.code == 1
    assert hint in told.err
    assert hint in told.out.replace("\n", " ")
    main([str(word) for word in [*check, again]])


def test_flags_that_contradict_the_manifest_are_told(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = dense.with_name("refitted.onnx")
    slim(capsys, dense, photographs, "--output", dense.with_name("a.onnx"),
         "--output-checkpoint", again)  # fmt: skip
    words = ["slim", "--onnx", again, "--data-dir", photographs, "--mac-reduction", "0.3"]
    words += ["--output", dense.with_name("b.onnx"), "--mean", 0.1, 0.2, 0.3, "--std", *HALF]
    main([str(word) for word in words])
    said = "its manifest records other preprocessing than the flags, which hold"
    assert f"{again}: {said}" in capsys.readouterr().err
