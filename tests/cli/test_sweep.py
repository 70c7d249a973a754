"""`slimdeploy sweep` end to end on a small ViT: the record, the picture, resuming, refusals."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.cli import main
from slimdeploy.manifest import verify_manifest, write_manifest
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule
from tests.cli.classifiers import PIXELS, two_classes
from tests.cli.test_bad_input import fails
from tests.graph.exports import export


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    path = tmp_path / "dense.onnx"
    onnx.save(two_classes(), path)
    return path


def words(dense: Path, data: Path, *more: object) -> list[str]:
    fixed = ["--onnx", dense, "--data-dir", data, *PIXELS, "--images", 8, "--rounds", 3]
    return [str(word) for word in ["sweep", *fixed, "--output", dense.with_name("out"), *more]]


def swept(capsys: pytest.CaptureFixture[str], dense: Path, data: Path, *more: object) -> Any:
    main([*words(dense, data, *more), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((dense.with_name("out") / "sweep.json").read_text())
    return found


def made_at(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.rglob("slim.onnx")}


def test_what_the_flags_say_of_pixels_holds_for_dense_and_slim(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = ["--mac-reduction", "0.2", "--impact", "grid", "--reconstruct", "none", "--no-latency"]
    wanted = swept(capsys, dense, photographs, *budget)["dense"]
    other = Preprocessing(
        input_size=(3, 64, 64), mean=(0.9, 0.1, 0.4), std=(0.2, 0.9, 0.3),
        interpolation="nearest", crop_pct=0.5,
    )  # fmt: skip
    write_manifest(dense, kind="dense-onnx", made_from={}, command=(), preprocessing=other)
    logits = [np.load(dense.with_name("out") / "dense.npz")["logits"]]
    shutil.rmtree(dense.with_name("out"))
    assert swept(capsys, dense, photographs, *budget)["dense"] == wanted
    logits.append(np.load(dense.with_name("out") / "dense.npz")["logits"])
    assert np.array_equal(*logits)


def test_a_sweep_and_what_is_added_to_it(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = dense.with_name("out")
    first = swept(capsys, dense, photographs, "--mac-reduction", "0.2,0.4", "--no-latency")
    assert [p["wanted"] for p in first["points"]] == [0.2, 0.4]
    assert first["timing"] is None
    assert first["dense"]["n"] == first["test"]["images"] == 16
    for point in first["points"]:
        assert point["mac_reduction"] >= point["wanted"]
        assert point["macs"] == pytest.approx((1 - point["mac_reduction"]) * first["dense"]["macs"])
        assert point["parity"] < 2e-5
        assert point["latency"] == []
        assert all((out / file).is_file() for file in point["files"].values())
        assert verify_manifest(out / point["files"]["onnx"]).preprocessing is not None
        assert json.loads((out / point["files"]["verification"]).read_text())["passed"]
        judge = ["evaluate", out / point["files"]["onnx"], "--dense", dense]
        main([*map(str, judge), "--data-dir", str(photographs), "--json"])
        judged = json.loads(capsys.readouterr().out)
        assert judged["slim"]["top1"] == point["top1"]
        for name in ("difference", "agreement", "difference_interval", "kl_divergence"):
            assert judged["comparison"][name] == pytest.approx(point[name], rel=1e-4, abs=1e-7)
        assert judged["slim"]["calibration_errors"].keys() == point["calibration_errors"].keys()
    before = made_at(out)

    more = ["--mac-reduction", "0.4", "--impact", "cover,grid", "--seeds", "0,1"]
    second = swept(capsys, dense, photographs, *more, "--batch-size", "1,2")
    assert [p["name"] for p in second["points"]] == [
        "cover-0.4-seed0", "grid-0.4-seed0", "cover-0.4-seed1", "grid-0.4-seed1",
    ]  # fmt: skip
    assert {n: t for n, t in made_at(out).items() if n in before} == before
    assert {**second["points"][0], "latency": []} == first["points"][1]
    for point in second["points"]:
        assert [row["batch_size"] for row in point["latency"]] == [1, 2]
        assert all(row["speedup"] > 0 and row["rounds"] == 3 for row in point["latency"])
    assert second["timing"]["threads"] == 1
    assert [len(group["points"]) for group in second["groups"]] == [2, 2]
    assert any(group["front"] for group in second["groups"])
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (out / "front.svg").read_bytes()[:400]


def test_choices_per_image_are_points_beside_static_ones(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = ["--mac-reduction", "0.3", "--search-images", 4]
    found = swept(capsys, dense, photographs, *budget, "--impact", "cover,predictor")
    static, dynamic = found["points"]
    for point, scorer in ((static, None), (dynamic, "predictor")):
        path = dense.with_name("out") / point["files"]["schedule"]
        told = KeepSchedule.read(path).dynamic
        assert (told.scorer if told else None) == scorer
        assert point["mac_reduction"] >= 0.3
        assert point["parity"] < 2e-5
    assert [group["impact"] for group in found["groups"]] == ["cover", "predictor"]


def test_the_gate_names_the_smallest_point_or_fails(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets = ["--mac-reduction", "0.2,0.4", "--no-latency"]
    found = swept(capsys, dense, photographs, *budgets, "--max-top1-drop", "100")
    assert found["chosen"] == ["cover-0.4-seed0"]
    assert found["gate"] == {"max_top1_drop": 100, "drop_by": "mean"}
    main(words(dense, photographs, *budgets, "--max-top1-drop", "100", "--drop-by", "interval"))
    shown = " ".join(capsys.readouterr().out.split())
    assert "by the lower end of the 95 % interval): cover, 0.4 of the MACs saved" in shown
    # A record that says all images were lost: the search need not be unlucky for the gate to fail.
    out = dense.with_name("out")
    for path in out.rglob("point.json"):
        record = json.loads(path.read_text())
        record["point"]["difference"] = -1.0
        path.write_text(json.dumps(record))
    for path in out.rglob("predictions.npz"):
        _turn_round(path)
    with pytest.raises(SystemExit) as caught:
        main(words(dense, photographs, *budgets, "--max-top1-drop", "0"))
    assert caught.value.code == 1
    assert "no point is within 0 points of the dense model's top-1" in capsys.readouterr().err
    assert json.loads((out / "sweep.json").read_text())["chosen"] is None


def _turn_round(path: Path) -> None:
    """Predictions of a model that is wrong about every image."""
    import numpy as np

    with np.load(path) as held:
        arrays: Any = dict(held)
    arrays["logits"] = -np.eye(2, dtype=np.float32)[arrays["labels"]]
    np.savez(path, **arrays)


def test_a_killed_sweep_goes_on(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = words(dense, photographs, "--mac-reduction", "0.2,0.4", "--impact", "grid")
    out = dense.with_name("out")
    process = subprocess.Popen(
        [sys.executable, "-m", "slimdeploy", *asked], stderr=subprocess.DEVNULL
    )
    first = out / "points" / "grid-0.2-seed0" / "point.json"
    while not first.is_file() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "killed too late to test anything"
    assert not (out / "sweep.json").exists()
    assert not (out / "points" / "grid-0.4-seed0" / "point.json").exists()
    before = made_at(out)["grid-0.2-seed0"]
    found = swept(capsys, dense, photographs, "--mac-reduction", "0.2,0.4", "--impact", "grid")
    assert made_at(out)["grid-0.2-seed0"] == before
    whole = dense.with_name("whole")
    again = [str(whole) if word == str(out) else word for word in asked]
    main([*again, "--no-latency", "--json"])
    other = json.loads(capsys.readouterr().out)
    timeless = {"seconds": 0, "latency": []}
    assert [{**p, **timeless} for p in found["points"]] == [
        {**p, **timeless} for p in other["points"]
    ]


def test_a_folder_of_other_settings_is_refused(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets = ["--mac-reduction", "0.2", "--impact", "grid", "--no-latency"]
    swept(capsys, dense, photographs, *budgets)
    out = dense.with_name("out")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    line = fails(capsys, *words(dense, photographs, *budgets, "--ridge", "2"))
    assert 'ridge: this folder\'s sweep was made with "default", now it is 2.0' in line
    line = fails(capsys, *words(dense, photographs, *budgets, "--ridge", "0"))
    assert "--ridge 0.0: must be above 0" in line
    line = fails(capsys, *words(dense, photographs, *budgets, "--split", "train"))
    assert "test_images: this folder's sweep was made with" in line
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    record = out / "points" / "grid-0.2-seed0" / "point.json"
    record.write_text(record.read_text().replace('"top1": ', '"top1": 7'))
    assert f"{record}: point.top1: Input should be less" in fails(
        capsys, *words(dense, photographs, *budgets)
    )


def test_other_weights_beside_the_dense_file_are_another_model(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = dense.with_name("w.data")
    model = onnx.load(dense)
    onnx.save(model, dense, save_as_external_data=True, location=data.name, size_threshold=256)
    budgets = ["--mac-reduction", "0.2", "--impact", "grid", "--no-latency"]
    swept(capsys, dense, photographs, *budgets)
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    line = fails(capsys, *words(dense, photographs, *budgets))
    assert "settings.json: weights: this folder's sweep was made with" in line


def test_damaged_records_are_named(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--mac-reduction", "0.2", "--impact", "grid", "--batch-size", "1"]
    swept(capsys, dense, photographs, *asked)
    out = dense.with_name("out")
    point, latency = (out / "points/grid-0.2-seed0" / f"{n}.json" for n in ("point", "latency"))
    timed = json.loads(latency.read_text())
    mark = out / "dense.json"
    for path, damaged in [
        (point, "{"),
        (point, "7"),
        (latency, json.dumps({**timed, "latency": {}})),
        (latency, json.dumps({**timed, "latency": {**timed["latency"], "rows": [1]}})),
        (mark, json.dumps({**json.loads(mark.read_text()), "engine": {}})),
        (out / "dense.npz", "PK"),
        (point.with_name("predictions.npz"), ""),
        (out / "settings.json", "[1]"),
    ]:
        before = path.read_bytes()
        path.write_text(damaged)
        line = fails(capsys, *words(dense, photographs, *asked))
        assert re.search(rf"{path}: not .*; remove (it|the folder)$", line.rstrip()), line
        path.write_bytes(before)
    swept(capsys, dense, photographs, *asked)


BAD = [
    (["--mac-reduction", ""], "--mac-reduction '': give one or more with commas between"),
    (["--mac-reduction", "0.3,x"], "--mac-reduction '0.3,x': give one or more"),
    (["--mac-reduction", "0.3,1"], "--mac-reduction 1: each must be above 0 and below 1"),
    (["--mac-reduction", "0"], "--mac-reduction 0: each must be above 0"),
    (["--mac-reduction", "nan"], "--mac-reduction nan: each must be above 0"),
    (["--mac-reduction", "0.3,0.30"], "--mac-reduction 0.3,0.30: 0.3 is there twice"),
    (["--mac-reduction", "0.3,0.99"], "--mac-reduction 0.99: geometric counts reach at most"),
    (["--impact", "magic"], "--impact magic: give one of cover, joint, path"),
    (["--impact", "grid,grid"], "--impact grid,grid: grid is there twice"),
    (["--seeds", "0,0"], "--seeds 0,0: 0 is there twice"),
    (["--seeds", "-1"], "--seeds -1: must be at least 0"),
    (["--batch-size", "0"], "--batch-size 0, --rounds 3: must be at least 1 and 2"),
    (["--max-top1-drop", "-1"], "--max-top1-drop -1.0: must be at least 0"),
    (["--max-top1-drop", "nan"], 'Invalid value "nan" for --max-top1-drop. Must be a number.'),
    (["--model", "test_vit"], "--model: does not go with --onnx"),
    (
        ["--impact", "cover,predictor", "--select", "slice"],
        "--impact predictor: --select: does not go with --dynamic",
    ),
    (["--impact", "cover,key-norm", "--pool-kept"], "--impact key-norm: --pool-kept: does not"),
    (["--reconstruct", "gradient"], "--reconstruct gradient: needs --model"),
    (["--output-schedule", "a.json"], "Unknown option: --output-schedule."),
    (["--ridge", "2", "--reconstruct", "none"], "--ridge: goes with --reconstruct refit, not none"),
    (["--split", "val"], "has no split 'val'"),
]


@pytest.mark.parametrize(("more", "said"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    more: list[str], said: str, dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(capsys, *words(dense, photographs, *more))
    assert [path.name for path in dense.parent.iterdir()] == ["dense.onnx"]


def test_a_fixed_batch_is_compared_before_any_work(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(dense)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, dense)
    for sizes in ("1", "4,8"):
        line = fails(capsys, *words(dense, photographs, "--batch-size", sizes))
        assert f"--batch-size {sizes[-1]}: dense.onnx takes 4 a call; give --batch-size 4" in line
    assert [path.name for path in dense.parent.iterdir()] == ["dense.onnx"]


def test_the_record_is_there_before_the_picture(
    dense: Path, photographs: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def draw(*_: object) -> None:
        raise ValueError("no picture")

    monkeypatch.setattr("slimdeploy.report.front.draw_front", draw)
    asked = ["--mac-reduction", "0.2", "--impact", "grid", "--reconstruct", "none", "--no-latency"]
    with pytest.raises(ValueError, match="no picture"):
        main(words(dense, photographs, *asked))
    assert json.loads((dense.with_name("out") / "sweep.json").read_text())["kind"] == "sweep"


def test_places_that_cannot_be_used(
    dense: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "out: is a file; --output names a folder" in _at_file(dense, photographs, capsys)
    dense.with_name("out").unlink()
    other = dense.with_name("out")
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    line = fails(capsys, *words(dense, photographs))
    assert "is not empty and holds no sweep" in line
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    line = fails(capsys, *words(dense, tmp_path / "none"))
    assert "none: no such folder; --data-dir names a folder of class folders" in line
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "a.png").write_bytes((photographs / "test" / "dark" / "00.png").read_bytes())
    assert "needs two class folders or more" in fails(capsys, *words(dense, flat))
    line = fails(capsys, *words(dense.with_name("gone.onnx"), photographs))
    assert "gone.onnx" in line
    line = fails(capsys, "sweep", "--data-dir", photographs, "--output", tmp_path / "new")
    assert "give --model NAME for a timm model, or --onnx FILE" in line
    line = fails(
        capsys, "sweep", "--model", "m", "--select", "slice", "--data-dir", photographs,
        "--output", tmp_path / "new",
    )  # fmt: skip
    assert "--select: does not go with --model" in line


def _at_file(dense: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> str:
    dense.with_name("out").write_text("a file")
    return fails(capsys, *words(dense, data))


@pytest.mark.slow
def test_a_sweep_of_a_timm_model(
    tmp_path: Path, checkpoint: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["sweep", "--model", "test_vit", "--checkpoint", str(checkpoint)]
    common += ["--data-dir", str(photographs), "--images", "8", "--rounds", "3", "--json"]
    line = fails(capsys, *common, "--impact", "magic", "--output", tmp_path / "out")
    assert "--impact magic: not one of" in line
    chosen = ["--mac-reduction", "0.4", "--impact", "path,predictor"]
    main([*common, *chosen, "--output", str(tmp_path / "out")])
    found = json.loads(capsys.readouterr().out)
    static, dynamic = found["points"]
    for point in (static, dynamic):
        assert 0.4 <= point["mac_reduction"] < 0.45
        assert point["parity"] < 2e-5
        assert len(point["latency"]) == 1
        assert set(point["files"]) == {"onnx", "schedule", "weights", "predictions"}
        schedule = KeepSchedule.read(tmp_path / "out" / point["files"]["schedule"])
        assert (schedule.dynamic is None) == (point is static)
    assert found["dense"]["file"] == str(tmp_path / "out" / "dense.onnx")


def test_other_classes_are_noticed_before_anything_is_written(
    dense: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "three"
    onnx.save(export("plain", "dynamo23", True), dense)
    for name in ("a", "b", "c"):
        shutil.copytree(photographs / "test" / "dark", data / name)
    line = fails(capsys, *words(dense, data, "--mac-reduction", 0.3))
    assert "3 class folders, but dense.onnx has 7 outputs" in line
    assert not (tmp_path / "out").exists()


def test_a_folder_with_nothing_but_its_settings_is_taken_over(
    dense: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run leaves that fails before its first model is made."""
    output = dense.with_name("out")
    output.mkdir()
    (output / "settings.json").write_text('{"images": 1}')
    assert swept(capsys, dense, photographs, "--mac-reduction", 0.3)["points"]
    (output / "settings.json").write_text('{"images": 1}')
    with pytest.raises(SystemExit):
        swept(capsys, dense, photographs, "--mac-reduction", 0.3)
