"""Model files of any size: read whole, written whole, and never from outside their folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from slimdeploy.engine import OnnxRuntimeEngine
from slimdeploy.errors import InputError
from slimdeploy.graph import lossless_graph, slim_graph
from slimdeploy.graph.files import storage
from slimdeploy.graph.files.external import is_outside, location_of, tensor_values
from slimdeploy.graph.files.storage import load_model, save_model
from slimdeploy.graph.files.stored import StoredConstant
from slimdeploy.graph.work import Work
from slimdeploy.measure.macs import count_macs
from slimdeploy.measure.onnx_file import load_structure
from tests.graph.text import model
from tests.graph.vit_text import TOKENS, compact, vit

X = np.random.default_rng(7).normal(size=(2, TOKENS, 4)).astype(np.float32)
KEEP = [[0, 2, 3, 5], [0, 3]]


def numbers(source: onnx.ModelProto) -> dict[str, list[object]]:
    return {t.name: tensor_values(t).tolist() for t in source.graph.initializer}


def beside(folder: Path) -> Path:
    """The text transformer with every weight in `m.onnx.data`."""
    path = folder / "m.onnx"
    save_model(vit(), path, limit=0, inside=0)
    return path


def redirected(path: Path, **entries: str) -> None:
    """Let the first weight of the file at `path` say other things of where it lies."""
    source = onnx.load(path, load_external_data=False)
    for entry in source.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(source.SerializeToString())


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    save_model(vit(), tmp_path / "m.onnx")
    assert load_model(tmp_path / "m.onnx") == vit() == onnx.load(tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_weights_beside_the_model_are_read_into_it(tmp_path: Path) -> None:
    path = beside(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert numbers(load_model(path)) == numbers(vit()) == numbers(onnx.load(path))
    with OnnxRuntimeEngine(path, threads=1) as engine:
        expected = compact(X, [range(TOKENS)] * 2)[:, 0]
        np.testing.assert_allclose(engine.infer(X)["y"], expected, rtol=1e-4, atol=1e-5)


def test_too_many_weights_stay_in_their_file_and_are_slimmed_all_the_same(tmp_path: Path) -> None:
    dense = load_model(beside(tmp_path), limit=100)
    assert all(is_outside(tensor) for tensor in dense.graph.initializer)
    slim, made = slim_graph(dense, KEEP).model, tmp_path / "slim.onnx"
    assert numbers(slim) == numbers(slim_graph(vit(), KEEP).model)
    for limit in (100, storage.MESSAGE_LIMIT):
        save_model(slim, made, limit, inside=0)
        assert made.with_name("slim.onnx.data").exists() == (limit == 100)
        with OnnxRuntimeEngine(made, threads=1) as engine:
            expected = compact(X, KEEP)[:, 0]
            np.testing.assert_allclose(engine.infer(X)["y"], expected, rtol=1e-4, atol=1e-5)


def test_large_weights_are_neither_copied_nor_held() -> None:
    body = "t = Transpose(w) v = Add(x, w) y = MatMul(v, t)"
    weight = np.random.default_rng(0).normal(size=(80, 80)).astype(np.float32)
    work = Work.of(model("float[80,80] x => float[80,80] y", body, w=weight))
    constant = work.graph.nodes[1].inputs[1]
    assert isinstance(constant, StoredConstant)
    assert np.array_equal(constant.values, weight)
    assert constant.values is not constant.values
    assert np.array_equal(work.facts.values["t"], weight.T)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    whole = vit().SerializeToString()
    for name, data in {"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello"}.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"{name}\.onnx: not a complete ONNX model \(trunc"):
            load_model(path)
    with pytest.raises(InputError, match=r"none\.onnx: no such file; give"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="is a folder; give"):
        load_model(tmp_path)


def test_a_file_that_no_message_can_be(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 31)  # takes no room on the disk
    with pytest.raises(InputError, match="larger than 2 GB, which ONNX does not allow"):
        load_model(path)


@pytest.mark.parametrize("place", ["../secret", "{folder}/secret", "a/../../secret", "C:\\s", ""])
@pytest.mark.parametrize("read", [load_model, load_structure, count_macs])
def test_no_path_leads_out_of_the_folder(place: str, read: object, tmp_path: Path) -> None:
    assert callable(read)
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(bytes(1000))
    path = beside(tmp_path / "in")
    redirected(path, location=place.format(folder=tmp_path))
    with pytest.raises(InputError, match=r"m\.onnx: tensor 'wq0' names the external file .* only"):
        read(path)


def test_no_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = beside(tmp_path / "in")
    data = path.with_name("m.onnx.data")
    data.rename(tmp_path / "secret")
    data.symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"'wq0' names the external file .* a link that leads out"):
        load_model(path)
    with pytest.raises(InputError, match="cannot load it"):
        OnnxRuntimeEngine(path)
    data.unlink()
    (tmp_path / "in" / "own").write_bytes((tmp_path / "secret").read_bytes())
    data.symlink_to("own")
    assert numbers(load_model(path)) == numbers(vit())


def test_a_weight_that_is_not_where_it_should_be(tmp_path: Path) -> None:
    path = beside(tmp_path)
    redirected(path, length="63")
    with pytest.raises(InputError, match=r"'wq0' takes 64 bytes, but its entry says 63 at 0"):
        load_model(path)
    beside(tmp_path)
    for offset, reason in {
        "-4": "says 64 at -4",
        "x": "no number",
        "1" * 30: "which has only",
    }.items():
        redirected(path, offset=offset)
        with pytest.raises(InputError, match=reason):
            load_model(path)
    beside(tmp_path)
    os.truncate(path.with_name("m.onnx.data"), 100)
    with pytest.raises(InputError, match=r"ends at byte \d+ of m\.onnx\.data, which has only 100"):
        load_model(path)
    path.with_name("m.onnx.data").unlink()
    with pytest.raises(InputError, match=r"'wq0' lies in 'm\.onnx\.data', which is not beside"):
        load_model(path)


def test_only_load_model_may_say_where_weights_lie(tmp_path: Path) -> None:
    dense = onnx.load(beside(tmp_path), load_external_data=False)
    with pytest.raises(InputError, match=r"tensor '.*' lies in a file: read the model with load_"):
        lossless_graph(dense)


def test_a_failed_write_leaves_both_files_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = beside(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    calls = []

    def fail(*_: object) -> int:
        calls.append(1)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return 0

    monkeypatch.setattr(storage, "_append", fail)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        save_model(vit(seed=1), path, limit=0, inside=0)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_no_stale_data_file_is_left_and_no_other_is_touched(tmp_path: Path) -> None:
    path = beside(tmp_path)
    save_model(vit(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    path.with_name("m.onnx.data").write_bytes(b"another's")
    save_model(vit(), path)
    with pytest.raises(InputError, match=r"m\.onnx\.data: is not m\.onnx's own; remove it"):
        save_model(vit(), path, limit=0, inside=0)
    assert path.with_name("m.onnx.data").read_bytes() == b"another's"


def test_a_model_may_be_written_over_the_one_it_was_read_from(tmp_path: Path) -> None:
    path = beside(tmp_path)
    dense = load_model(path, limit=0)
    save_model(slim_graph(dense, KEEP).model, path, limit=0, inside=0)
    places = {location_of(t) for t in load_structure(path).graph.initializer if is_outside(t)}
    assert places == {"m.onnx.data"}
    assert numbers(load_model(path)) == numbers(slim_graph(vit(), KEEP).model)
