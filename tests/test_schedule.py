"""The keep schedule: what it accepts, what it refuses, and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.errors import InputError
from slimdeploy.schedule import SCHEMA_FILE, KeepSchedule, schema_text
from tests.conftest import geometry, schedule

ALL = list(range(17))


@st.composite
def nested_keeps(draw: st.DrawFn) -> list[list[int]]:
    """Any legal schedule for the small geometry."""
    before, keep = set(ALL), []
    for _ in range(4):
        before = {0} | draw(st.sets(st.sampled_from(sorted(before))))
        keep.append(sorted(before))
    return keep


@given(nested_keeps())
def test_a_legal_schedule_survives_writing_and_reading(keep: list[list[int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sched.json"
        made = schedule(keep)
        made.write(path)
        assert KeepSchedule.read(path) == made
        assert made.keep == keep
        jsonschema.validate(json.loads(path.read_text()), json.loads(SCHEMA_FILE.read_text()))


@given(nested_keeps(), st.integers(1, 3), st.data())
def test_a_token_that_comes_back_is_refused(
    keep: list[list[int]], layer: int, data: st.DataObject
) -> None:
    dropped = sorted(set(ALL) - set(keep[layer - 1]))
    if not dropped:
        return
    back = data.draw(st.sampled_from(dropped))
    keep[layer] = sorted({*keep[layer], back})
    with pytest.raises(ValueError, match=rf"layers\[{layer}\].keep: id {back} is not among"):
        schedule(keep)


@given(nested_keeps(), st.integers(0, 3), st.integers(17, 10**6))
def test_an_id_beyond_the_last_token_is_refused(
    keep: list[list[int]], layer: int, strange: int
) -> None:
    keep[layer] = [*keep[layer], strange]
    with pytest.raises(ValueError, match=rf"layers\[{layer}\].keep: id {strange} is out of range"):
        schedule(keep)


@given(nested_keeps(), st.integers(0, 3))
def test_the_token_that_the_head_reads_must_stay(keep: list[list[int]], layer: int) -> None:
    keep[layer] = [i for i in keep[layer] if i != 0] or [1]
    expected = r"layers\[\d\].keep: (the class token \(id 0\) is missing|id \d+ is not among)"
    with pytest.raises(ValueError, match=expected):
        schedule(keep)


def test_distilled_models_keep_both_prefix_tokens() -> None:
    tokens = list(range(18))
    changes: dict[str, Any] = {"prefix": ("class", "distillation"), "head_reads": (0, 1)}
    assert schedule([tokens, tokens, tokens, [0, 1]], **changes).counts == [18, 18, 18, 2]
    with pytest.raises(ValueError, match=r"layers\[3\].keep: the distillation token \(id 1\)"):
        schedule([tokens, tokens, tokens, [0]], **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["layers"].pop(), "layers: 3 layers for a model of depth 4"),
        (lambda d: d["layers"][1].update(keep=[]), "layers[1].keep: "),
        (lambda d: d["layers"][1].update(keep=[3, 0]), "layers[1].keep: ids must be in ascending"),
        (lambda d: d["layers"][2].update(keep=["a"]), "layers[2].keep[0]: "),
        (lambda d: d["layers"][0].update(scores=[1.0]), "layers[0].scores: 1 scores, the model"),
        (lambda d: d.update(version=2), "version: "),
        (lambda d: d.update(surprise=1), "surprise: "),
        (lambda d: d["model"].update(grid=[2, 8]), "model.grid: "),
        (lambda d: d["model"].pop("depth"), "model.depth: "),
    ],
)
def test_a_bad_file_is_refused_with_its_field(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "sched.json"
    schedule([ALL, ALL, ALL, [0]]).write(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError) as caught:
        KeepSchedule.read(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sched.json"
    schedule([ALL, ALL, ALL, [0]]).write(path)
    path.write_text(path.read_text()[:200])
    with pytest.raises(InputError, match="not valid JSON, truncated or damaged"):
        KeepSchedule.read(path)
    with pytest.raises(InputError, match="cannot be read"):
        KeepSchedule.read(tmp_path / "absent.json")


def test_the_digest_depends_on_kept_ids_and_model_alone() -> None:
    one, two = schedule([ALL, ALL, ALL, [0]]), schedule([ALL, ALL, ALL[:-1], [0]])
    noted = one.model_copy(update={"provenance": one.provenance.model_copy(update={"seed": 7})})
    assert one.digest == noted.digest != two.digest
    assert schedule([ALL] * 3 + [[0]], name="other").digest != one.digest


def test_the_published_schema_has_not_drifted() -> None:
    assert SCHEMA_FILE.read_text() == schema_text(), "run `python -m tools.write_schema`"


def test_geometry_counts_tokens() -> None:
    assert geometry().tokens == 17
    assert geometry(prefix=("class", "register", "register")).tokens == 19


def test_the_published_schema_refuses_a_layer_that_keeps_nothing() -> None:
    schema = json.loads(SCHEMA_FILE.read_text())["$defs"]["Layer"]
    jsonschema.validate({"keep": [0]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"keep": []}, schema)


def test_a_manifest_is_told_from_a_schedule(tmp_path: Path) -> None:
    path = tmp_path / "slim.onnx.json"
    path.write_text('{"format": 1, "artifact": {"name": "slim.onnx"}}')
    with pytest.raises(InputError, match=r"is the manifest of slim.onnx, not a keep schedule"):
        KeepSchedule.read(path)
