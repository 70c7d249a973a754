"""`slim` and `finetune`, killed at any moment, end in the files of an undisturbed run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.test_slim_onnx import PIXELS
from tests.graph.exports import export
from tests.slim.killing import Killed

pytestmark = pytest.mark.forks

BUDGET = ("--mac-reduction", 0.4)
TOLERANCE = ("--tolerance", 0.05)
EVERY_WAY = pytest.mark.parametrize(
    "how",
    [
        (*BUDGET, "--reconstruct", "refit"),
        (*BUDGET, "--reconstruct", "gradient"),
        (*TOLERANCE, "--reconstruct", "refit"),
        (*BUDGET, "--shape", "auto", "--dynamic", "predictor"),
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)


def slim(checkpoint: Path, photographs: Path, folder: Path, *how: object) -> Killed:
    output = folder / "out" / "sched.json"
    output.parent.mkdir()
    words = ["--model", "test_vit", "--checkpoint", checkpoint, "--data-dir", photographs]
    size = ["--images", 6, *(() if "--dynamic" in how else ("--search-images", 6))]
    return Killed(output.parent, ["slim", *words, *size, *how, "--output", output])


def slim_onnx(photographs: Path, folder: Path, *how: object) -> Killed:
    dense, output = folder / "dense.onnx", folder / "out" / "slim.onnx"
    output.parent.mkdir()
    onnx.save(export("plain", "script17", True), dense)
    words = ["--onnx", dense, "--data-dir", photographs, *PIXELS, *BUDGET]
    return Killed(output.parent, ["slim", *words, "--images", 8, *how, "--output", output])


def finetune(checkpoint: Path, photographs: Path, folder: Path, *how: object) -> Killed:
    """Two passes of three steps, starting from a schedule made without data."""
    from slimdeploy.cli import main

    schedule, output = folder / "plan.json", folder / "out" / "slim.safetensors"
    output.parent.mkdir()
    plan = ["plan", "--model", "test_vit", "--mac-reduction", 0.4, "--positions", "grid"]
    main([str(word) for word in (*plan, "--checkpoint", checkpoint, "--output", schedule)])
    words = ["--keep-schedule", schedule, "--data-dir", photographs, "--workers", 0]
    size = ["--epochs", 2, "--batch-size", 8, "--val-split", "test"]
    named = ["--output", output, "--output-schedule", output.with_name("tuned.json")]
    return Killed(output.parent, ["finetune", *words, *size, *how, *named])


@EVERY_WAY
def test_a_killed_search_writes_the_same_files(
    checkpoint: Path, photographs: Path, tmp_path: Path, how: tuple[object, ...]
) -> None:
    run = slim(checkpoint, photographs, tmp_path, *how)
    assert set(run.files) == {"sched.json", "sched.safetensors"}
    draw = random.Random(str(how))
    for count in (draw.randrange(1, run.events), run.events - draw.randrange(2, 7)):
        run.at_event(count)  # the second: while it tidies up, its results written
    run.at_any_time(draw)


@pytest.mark.parametrize(
    "how", [("--search-images", 4), ("--shape", "auto"), ("--dynamic", "predictor")]
)
def test_a_killed_search_of_a_file_writes_the_same_files(
    photographs: Path, tmp_path: Path, how: tuple[object, ...]
) -> None:
    run = slim_onnx(photographs, tmp_path, *how)
    assert set(run.files) == {"slim.onnx", "slim.onnx.json", "slim.json"}
    draw = random.Random(str(how))
    for count in (draw.randrange(1, run.events), run.events - draw.randrange(2, 7)):
        run.at_event(count)
    run.at_any_time(draw)


def test_a_finished_layer_is_taken_and_a_damaged_one_found_again(
    photographs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = slim_onnx(photographs, tmp_path)
    run.kill_at_event(run.events // 2)
    damaged, taken, *_ = sorted(run.folder.glob(".slim.onnx.work/layer-*.json"))
    damaged.write_text("{")
    taken.write_text(json.dumps(json.loads(taken.read_text()) | {"scores": None}))
    capfd.readouterr()
    run.resume()
    assert capfd.readouterr().err.count("is unreadable") == 1
    layers = {path: int(path.stem[6:]) for path in (damaged, taken)}
    new, old = (
        json.loads(text)["layers"]
        for text in ((run.folder / "slim.json").read_text(), run.files["slim.json"])
    )
    assert new[layers[damaged] - 1] == old[layers[damaged] - 1]
    assert new[layers[taken] - 1] == old[layers[taken] - 1] | {"scores": None}


@pytest.mark.parametrize("source", ["timm", "dynamic", "onnx"])
def test_a_solved_layer_is_taken_and_a_damaged_one_solved_again(
    checkpoint: Path,
    photographs: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    source: str,
) -> None:
    how = () if source == "timm" else ("--dynamic", "predictor")
    run = (
        slim_onnx(photographs, tmp_path)
        if source == "onnx"
        else slim(checkpoint, photographs, tmp_path, *BUDGET, *how)
    )
    for count in range(run.events // 3, run.events, 6):
        run.kill_at_event(count)
        if len(solved := sorted(run.folder.glob(".*.work/refit-*.npz"))) > 1:
            break
    damaged, taken, *_ = solved
    with np.load(taken) as held:
        changed = {name: 0 * x for name, x in held.items()}
    np.savez(taken, **changed)
    damaged.write_bytes(damaged.read_bytes()[:100])
    capfd.readouterr()
    run.resume()
    told = capfd.readouterr().err
    assert told.count("going on with what a run that did not end had found") == 1
    assert told.count("is found again") == 1
    name = "slim.onnx" if source == "onnx" else "sched.safetensors"
    assert (run.folder / name).read_bytes() != run.files[name]  # of the weights that were changed


@pytest.mark.slow
@EVERY_WAY
def test_a_search_may_be_killed_whenever_it_touches_a_file(
    checkpoint: Path, photographs: Path, tmp_path: Path, how: tuple[object, ...]
) -> None:
    run = slim(checkpoint, photographs, tmp_path, *how)
    for count in range(1, run.events + 1):
        run.at_event(count)


def test_a_killed_fine_tuning_writes_the_same_files(
    checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    run = finetune(checkpoint, photographs, tmp_path, "--save-every", 1, "--amp-dtype", "bfloat16")
    assert set(run.files) == {"slim.safetensors", "tuned.json"}
    draw = random.Random(0)
    for count in (draw.randrange(1, run.events), run.events - draw.randrange(0, 4)):
        run.at_event(count)
    run.at_any_time(draw)


@pytest.mark.slow
def test_a_fine_tuning_may_be_killed_whenever_it_touches_a_file(
    checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    run = finetune(checkpoint, photographs, tmp_path, "--save-every", 2)
    for count in range(1, run.events + 1):
        run.at_event(count)
