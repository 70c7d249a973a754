"""`slimdeploy verify --dense`: verdicts, exit codes, and the record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.cli import main
from slimdeploy.graph import GraphOptions, lossless_graph, slim_graph
from slimdeploy.preprocessing import Preprocessing
from tests.conftest import schedule
from tests.graph.exports import DEPTH, export
from tests.graph.reference import random_keep

KEEP = random_keep(1, DEPTH, 17, [0], [0])
PREPROCESSING = Preprocessing(
    input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0
)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A dense ViT with LayerScale, its slim form and the schedule between them."""
    paths = {name: tmp_path / name for name in ("dense.onnx", "slim.onnx", "sched.json")}
    dense = export("layerscale", "script17", True)
    onnx.save(dense, paths["dense.onnx"])
    onnx.save(slim_graph(dense, KEEP).model, paths["slim.onnx"])
    made = schedule(KEEP, depth=DEPTH).model_copy(update={"preprocessing": PREPROCESSING})
    made.write(paths["sched.json"])
    return paths


def words(files: dict[str, Path], *more: object) -> list[str]:
    return [
        "verify", "--dense", str(files["dense.onnx"]), "--slim", str(files["slim.onnx"]),
        "--keep-schedule", str(files["sched.json"]), "--images", "3", *map(str, more),
    ]  # fmt: skip


def record(files: dict[str, Path]) -> Any:
    return json.loads(files["slim.onnx"].with_name("slim.onnx.verify.json").read_text())


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    error = capsys.readouterr().err
    assert caught.value.code == code, error
    assert error.count("\n") == 1
    return error


def damage(path: Path, change: Any) -> None:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def test_a_right_file_passes_and_the_record_says_how_it_was_judged(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*words(files), "--json"])
    printed = json.loads(capsys.readouterr().out)
    written = record(files)
    assert printed == written
    assert written["passed"]
    assert written["problem"] is None
    hashes = {role: entry["sha256"] for role, entry in written["files"].items()}
    names = {"dense": "dense.onnx", "slim": "slim.onnx", "keep_schedule": "sched.json"}
    assert hashes == {
        role: hashlib.sha256(files[name].read_bytes()).hexdigest() for role, name in names.items()
    }
    assert written["command"][:3] == ["slimdeploy", "verify", "--dense"]
    assert written["protocol"]["tolerance"] == 1e-4
    assert written["protocol"]["real_images"] is None
    found = written["results"]["random"]
    assert found["images"] == found["outputs"]["logits"]["rows"] == 3
    assert found["outputs"]["logits"]["relative"] < 2e-5
    assert [(b["block"], b["point"], b["tokens"]) for b in found["blocks"]] == [
        (n, point, len(KEEP[n - 1])) for n in (1, 2, 3) for point in ("attention", "output")
    ]
    assert all(0 <= b["relative"] < 2e-5 for b in found["blocks"])
    assert found["worst"] in found["blocks"]
    assert found["first_bad"] is None
    assert sorted(p.name for p in files["slim.onnx"].parent.iterdir()) == [
        "dense.onnx", "sched.json", "slim.onnx", "slim.onnx.verify.json"
    ]  # fmt: skip


def test_real_images_are_judged_beside_random_ones(
    files: dict[str, Path], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(words(files, "--data-dir", photographs, "--output", files["slim.onnx"].parent / "r.json"))
    said = capsys.readouterr().out
    assert "slim.onnx: PASSED against" in said
    assert "3 random images:" in said
    assert "3 real images:" in said
    written = json.loads((files["slim.onnx"].parent / "r.json").read_text())
    assert set(written["results"]) == {"random", "real"}
    assert written["protocol"]["real_images"]["preprocessing"]["input_size"] == [3, 64, 64]
    one, two = (written["results"][kind]["worst"]["scale"] for kind in ("random", "real"))
    assert one != two


def drop_layer_scale(model: onnx.ModelProto) -> None:
    """Let what multiplies by block 2's first gamma be skipped."""
    scaled = next(n for n in model.graph.node if "blocks.1.ls1.gamma" in n.input)
    source = next(name for name in scaled.input if "gamma" not in name)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == scaled.output[0]:
                node.input[index] = source
    model.graph.node.remove(scaled)


def bend_bias(model: onnx.ModelProto) -> None:
    """What a value bias folded into the wrong place does to block 3's projection."""
    bias = next(t for t in model.graph.initializer if t.name == "blocks.2.attn.proj.bias")
    values = onnx.numpy_helper.to_array(bias) + np.float32(0.05)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))


@pytest.mark.parametrize(
    ("change", "where"),
    [(drop_layer_scale, "block 2 after attention"), (bend_bias, "block 3 after attention")],
)
def test_a_wrong_file_exits_1_and_names_the_first_bad_block(
    files: dict[str, Path], change: Any, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(files["slim.onnx"], change)
    error = fails(capsys, words(files), 1)
    assert f"slim.onnx: differs on random images, first in {where}, tensor '/blocks/" in error
    assert "of the scale" in error
    written = record(files)
    assert not written["passed"]
    first = written["results"]["random"]["first_bad"]
    assert f"block {first['block']}" in where
    assert not first["passed"]


def test_a_wrong_file_is_also_found_without_looking_into_blocks(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(files["slim.onnx"], bend_bias)
    error = fails(capsys, words(files, "--no-per-block"), 1)
    assert "output 'logits' differs on random images: max abs" in error
    assert record(files)["results"]["random"]["blocks"] == []


def test_a_file_made_with_another_schedule_fails_its_structure(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    schedule([KEEP[0], KEEP[1][:-1], [0]], depth=DEPTH).write(files["sched.json"])
    count = len(KEEP[1])
    error = fails(capsys, words(files), 1)
    assert f"block 2 computes {count} queries for {len(KEEP[0])} keys, the schedule says" in error
    assert "block 2" in record(files)["problem"]


def test_the_same_counts_with_other_tokens_fail(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = sorted({0, *[i for i in range(17) if i not in KEEP[0]], *KEEP[0][:]})[: len(KEEP[0])]
    assert other != KEEP[0]
    keep = [other, [0, *other[1 : len(KEEP[1])]], [0]]
    schedule(keep, depth=DEPTH).write(files["sched.json"])
    assert "first in block 1 after attention" in fails(capsys, words(files), 1)


def test_a_graph_that_cannot_run_fails_and_is_recorded(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def twist(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "Transpose")
        node.attribute[0].ints[:] = list(node.attribute[0].ints)[::-1]

    damage(files["slim.onnx"], twist)
    fails(capsys, words(files), 1)
    assert record(files)["problem"]


@pytest.mark.parametrize("select", ["slice", "one-hot"])
def test_other_forms_of_selection_pass(
    files: dict[str, Path], select: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = onnx.load(files["dense.onnx"])
    slim = slim_graph(dense, KEEP, GraphOptions(select=select, fixed_batch=2, input_layout="nhwc"))
    onnx.save(slim.model, files["slim.onnx"])
    main(words(files))
    assert len(record(files)["results"]["random"]["blocks"]) == 2 * DEPTH


def test_a_probe_is_judged_by_its_streams(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    dense = onnx.load(files["dense.onnx"])
    onnx.save(slim_graph(dense, KEEP, GraphOptions(prefix_blocks=2)).model, files["slim.onnx"])
    main(words(files))
    written = record(files)
    assert written["notes"] == ["a probe of 2 of 3 blocks: what follows was not compared"]
    assert [b["slim"] for b in written["results"]["random"]["blocks"]][-1] == "stream"
    damage(files["slim.onnx"], drop_layer_scale)
    assert "first in block 2 after attention" in fails(capsys, words(files), 1)


def test_without_a_schedule_both_files_must_agree(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    dense = onnx.load(files["dense.onnx"])
    lossless, both = files["slim.onnx"], words(files)[:5]
    onnx.save(lossless_graph(dense).model, lossless)
    main([*both, "--images", "2"])
    assert record(files)["protocol"]["reference"] == "the dense graph"
    onnx.save(slim_graph(dense, KEEP).model, lossless)
    assert "output 'logits' differs" in fails(capsys, both, 1)


def test_half_precision_is_allowed_more_and_the_record_says_so(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def halve(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.t.data_type == onnx.TensorProto.FLOAT:
                    values = onnx.numpy_helper.to_array(attribute.t).astype(np.float16)
                    attribute.t.CopyFrom(onnx.numpy_helper.from_array(values))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        del model.graph.value_info[:]

    for name in ("dense.onnx", "slim.onnx"):
        damage(files[name], halve)
    main(words(files))
    protocol = record(files)["protocol"]
    assert (protocol["tolerance"], protocol["coarsest_weights"]) == (1e-2, "float16")
    assert record(files)["results"]["random"]["worst"]["relative"] > 1e-4
    damage(files["slim.onnx"], drop_layer_scale)
    assert "first in block 2 after attention" in fails(capsys, words(files), 1)


def test_weights_beside_the_file_are_hashed_too(files: dict[str, Path]) -> None:
    slim = files["slim.onnx"]
    onnx.save(
        onnx.load(slim), slim, save_as_external_data=True, location="w.bin", size_threshold=256
    )
    main(words(files))
    digest = hashlib.sha256(slim.with_name("w.bin").read_bytes()).hexdigest()
    assert record(files)["files"]["slim"]["parts"] == {"w.bin": digest}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--images", "0"], "for --images. Must be >= 1"),
        (["--tolerance", "0"], "--tolerance 0.0: must be above 0"),
        (["--checkpoint", "w.safetensors"], "--checkpoint: does not go with --dense"),
        (["--output", "SLIM"], "is another file that this command"),
        (["--data-dir", "absent"], "absent: no such folder"),
        (["--dense", "absent.onnx"], "absent.onnx: no such file"),
        (["--threads", "0"], "for --threads. Must be >= 1"),
    ],
)
def test_bad_arguments(
    files: dict[str, Path], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("SLIM", str(files["slim.onnx"])) for word in more]
    arguments = words(files)
    if given[0] in arguments:
        place = arguments.index(given[0])
        del arguments[place : place + 2]
    assert message in fails(capsys, [*arguments, *given], 2)
    assert not files["slim.onnx"].with_name("slim.onnx.verify.json").exists()


def test_a_schedule_for_another_depth_is_bad_input(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    schedule([*KEEP, [0]], depth=DEPTH + 1).write(files["sched.json"])
    error = fails(capsys, words(files), 2)
    assert "sched.json: model.depth is 4, dense.onnx has 3; the schedule is for another" in error


def test_real_images_need_a_recorded_preprocessing(
    files: dict[str, Path], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule(KEEP, depth=DEPTH).write(files["sched.json"])
    error = fails(capsys, words(files, "--data-dir", photographs), 2)
    assert "neither the schedule nor a manifest" in error


def test_something_to_compare_with_must_be_given(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    slim = ["verify", "--slim", str(files["slim.onnx"])]
    assert "give --dense, the ONNX file to compare with" in fails(capsys, slim, 2)
    scheduled = [*slim, "--keep-schedule", str(files["sched.json"])]
    assert "or --data-dir" in fails(capsys, scheduled, 2)


def test_a_slim_file_without_its_schedule(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = ["verify", "--dense", str(files["dense.onnx"]), "--slim", str(files["slim.onnx"])]
    assert fails(capsys, [*shown, "--images", "1"], 1).endswith("; no stream was compared\n")
    assert "give the schedule with --keep-schedule" in record(files)["notes"][-1]


def test_the_record_does_not_replace_a_manifest(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = files["slim.onnx"].with_name("slim.onnx.json")
    assert "is another file that this command" in fails(
        capsys, words(files, "--output", manifest), 2
    )


@pytest.mark.parametrize("flag", ["--pool-kept", "--no-per-block", "--threads=1", "--output=x"])
def test_flags_that_need_the_dense_file(
    flag: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", "--slim", str(files["slim.onnx"]), "--data-dir", "images"]
    arguments += ["--keep-schedule", str(files["sched.json"]), flag]
    assert f"{flag.split('=')[0]}: goes with --dense" in fails(capsys, arguments, 2)


def test_inspect_shows_the_record(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main(words(files))
    capsys.readouterr()
    path = files["slim.onnx"].with_name("slim.onnx.verify.json")
    main(["inspect", str(path), "--json"])
    assert json.loads(capsys.readouterr().out) == record(files)
    main(["inspect", str(path)])
    said = capsys.readouterr().out
    assert f"{files['slim.onnx']}: PASSED against {files['dense.onnx']}" in said
    path.write_text('{"kind": "verification"}')
    damaged = "a damaged record of kind 'verification'"
    assert damaged in fails(capsys, ["inspect", str(path)], 2)
    path.write_text("{}")
    assert "neither a keep schedule nor a manifest" in fails(capsys, ["inspect", str(path)], 2)
