"""`slimdeploy draw`: a picture of a static and of a dynamic schedule, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

from slimdeploy.cli import main
from slimdeploy.measure.choices import chosen_ids, with_choices
from slimdeploy.report import kept_patches
from slimdeploy.schedule import KeepSchedule
from tests.cli.classifiers import PIXELS
from tests.cli.test_bad_input import fails
from tests.graph.exports import export


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """A folder with a static schedule and a dynamic one, each beside its file."""
    folder = tmp_path_factory.mktemp("made")
    onnx.save(export("plain", "dynamo23", True), folder / "dense.onnx")
    words = ["slim", "--onnx", folder / "dense.onnx", "--data-dir", photographs, *PIXELS]
    words += ["--mac-reduction", "0.3", "--images", 8]
    ways = (("static", []), ("dynamic", ["predictor"]), ("merge", ["merge"]))
    for name, way in ways:
        more = ["--dynamic", *way] if way else []
        main([str(w) for w in (*words, *more, "--output", folder / f"{name}.onnx")])
    return folder


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is kept of each photograph, as the drawing is given it."""
    seen: list[Any] = []
    inner = kept_patches.draw_kept_patches

    def spy(images: Any, kept: Any, *args: Any, **more: Any) -> None:
        seen.append(kept)
        inner(images, kept, *args, **more)

    monkeypatch.setattr(kept_patches, "draw_kept_patches", spy)
    return seen


def test_a_static_schedule_needs_no_file(
    made: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen, schedule, target = drawn(monkeypatch), made / "static.json", tmp_path / "kept.png"
    words = ["draw", schedule, "--data-dir", photographs, "--images", 3, "--output", target]
    main([*map(str, words), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (said["output"], len(said["images"]), said["dynamic"]) == (str(target), 3, False)
    assert seen == [[KeepSchedule.read(schedule).keep] * 3]
    with Image.open(target) as picture:
        assert picture.height > picture.width / 2


def test_a_dynamic_file_is_asked_what_it_chooses(
    made: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen, schedule = drawn(monkeypatch), KeepSchedule.read(made / "dynamic.json")
    words = ["draw", made / "dynamic.json", "--slim", made / "dynamic.onnx", "--data-dir"]
    words += [photographs, "--output", tmp_path / "kept.png"]
    main([*map(str, words), "--json"])
    files = json.loads(capsys.readouterr().out)["images"]
    (kept,) = seen
    assert [[len(ids) for ids in each] for each in kept] == [schedule.counts] * len(files)
    assert any(each != kept[0] for each in kept)
    assert schedule.preprocessing is not None
    photograph = Image.open(files[2]).convert("RGB")
    image = np.stack([schedule.preprocessing.apply(photograph)])
    probed, names = with_choices(onnx.load(made / "dynamic.onnx"))
    session = ort.InferenceSession(probed.SerializeToString())
    rows = [None if name is None else session.run([name], {"image": image})[0] for name in names]
    wanted = chosen_ids(rows, schedule.counts, 17, (0,), 1)
    assert kept[2] == [ids[0].tolist() for ids in wanted]


def test_merged_patches_are_drawn_as_their_mean(
    made: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen, schedule = drawn(monkeypatch), KeepSchedule.read(made / "merge.json")
    words = ["draw", made / "merge.json", "--slim", made / "merge.onnx", "--data-dir"]
    main([*map(str, [*words, photographs, "--output", tmp_path / "merged.png"]), "--json"])
    assert json.loads(capsys.readouterr().out)["dynamic"]
    assert [[len(ids) for ids in each] for each in seen[0]] == [schedule.counts] * 4
    assert (tmp_path / "merged.png").is_file()
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2, :2], pixels[2:, 2:], pixels[0, 2:] = 100, 200, 7
    merged = kept_patches.averaged(pixels, np.array([3, 0, 1, 3]), (2, 2))
    assert (merged[:2, :2] == 150).all()
    assert (merged[2:, 2:] == 150).all()
    assert (merged[:2, 2:] == pixels[:2, 2:]).all()


def test_a_photograph_of_sixteen_bits_is_named(
    made: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    Image.fromarray(np.full((48, 48), 40000, np.uint16)).save(deep / "x.png")
    target = tmp_path / "kept.png"
    line = fails(capsys, "draw", made / "static.json", "--data-dir", deep, "--output", target)
    assert f"{deep / 'x.png'}: image mode I;16 has more than 8 bits: convert it to 8" in line
    assert not target.exists()


WRONG = [
    (["dynamic.json"], "dynamic.json: each image chooses its patches: give the file with --slim"),
    (["dynamic.json", "--slim", "static.onnx"], "static.onnx: records no choices"),
    (["dynamic.json", "--slim", "none.onnx"], "none.onnx"),
    (["none.json"], "none.json"),
    (["static.json", "--output", "kept.svg"], "--output kept.svg: name a .png file"),
    (["static.json", "--images", "0"], "for --images. Must be >= 1"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_bad_input_is_one_line(
    made: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    words: list[str], message: str,
) -> None:  # fmt: skip
    given = [str(made / w) if w.endswith((".json", ".onnx")) else w for w in words]
    if "--output" not in given:
        given += ["--output", str(tmp_path / "kept.png")]
    assert message in fails(capsys, "draw", *given, "--data-dir", photographs)
    assert not list(tmp_path.iterdir())
