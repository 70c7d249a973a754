"""Files of other shapes than most: fixed batches, channels last, several outputs, pooling heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.cli import main
from slimdeploy.graph import GraphOptions, dense_graph
from slimdeploy.schedule import KeepSchedule
from tests.cli.classifiers import PIXELS, two_classes
from tests.graph.exports import export, run


def result(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    main([*map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)


def written(folder: Path, options: GraphOptions) -> Path:
    path = folder / "dense.onnx"
    onnx.save(dense_graph(export("plain", "dynamo18", True), options).model, path)
    return path


@pytest.mark.parametrize(
    "options", [GraphOptions(fixed_batch=4), GraphOptions(input_layout="nhwc")]
)
@pytest.mark.parametrize("chosen", [["--dynamic", "predictor"], ["--impact", "cover"]])
def test_fixed_batches_and_channels_last_are_slimmed_alike(
    options: GraphOptions,
    chosen: list[str],
    tmp_path: Path,
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = []
    for name, dense in (("usual", written(tmp_path, GraphOptions())), ("other", None)):
        path = dense or written(tmp_path, options)
        out = tmp_path / f"{name}.onnx"
        made = result(
            capsys, "slim", "--onnx", path, "--data-dir", photographs, "--mac-reduction", 0.3,
            *PIXELS, *chosen, "--output", out, "--output-checkpoint", tmp_path / f"{name}.d.onnx",
        )  # fmt: skip
        assert made["parity"]["passed"]
        assert result(
            capsys, "verify", "--dense", tmp_path / f"{name}.d.onnx", "--slim", out, "--images", 8,
            "--keep-schedule", out.with_suffix(".json"), "--data-dir", photographs,
        )["passed"]  # fmt: skip
        kept.append(KeepSchedule.read(out.with_suffix(".json")).keep)
    assert kept[0] == kept[1]


def test_every_output_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = export("plain", "dynamo18", True)
    both = onnx.ModelProto()
    both.CopyFrom(dense)
    (head,) = both.graph.output
    both.graph.node.append(onnx.helper.make_node("Neg", [head.name], ["second"]))
    kind = onnx.ValueInfoProto()
    kind.CopyFrom(head)
    kind.name = "second"
    both.graph.output.insert(0, kind)
    path, sched = tmp_path / "both.onnx", tmp_path / "sched.json"
    onnx.save(both, path)
    result(capsys, "plan", "--onnx", path, "--mac-reduction", 0.3, "--output", sched)
    out = tmp_path / "slim.onnx"
    made = result(capsys, "export", "--keep-schedule", sched, "--output", out)
    assert made["parity"]["passed"]
    # A file whose outputs all stay the same but one, which is not the first.
    words = ["quantize", path, "--precision", "fp16", "--output", tmp_path / "low.onnx", "--json"]
    main([*map(str, words)])
    whole = json.loads(capsys.readouterr().out)["parity"]["relative"]
    only_first = onnx.ModelProto()
    only_first.CopyFrom(both)
    constant = onnx.helper.make_node("Mul", [head.name, "nothing"], ["second"])
    del only_first.graph.node[-1]
    only_first.graph.node.append(constant)
    zero = onnx.numpy_helper.from_array(np.zeros((), np.float32), "nothing")
    only_first.graph.initializer.append(zero)
    onnx.save(only_first, path)
    main([*map(str, words)])
    assert json.loads(capsys.readouterr().out)["parity"]["relative"] == pytest.approx(whole)


def test_classes_and_single_numbers_beside_the_result_are_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = onnx.ModelProto()
    dense.CopyFrom(export("plain", "dynamo18", True))
    graph, make = dense.graph, onnx.helper.make_tensor_value_info
    name = graph.output[0].name
    best = onnx.helper.make_node("ArgMax", [name], ["best"], axis=1, keepdims=0)
    most = onnx.helper.make_node("ReduceMax", [name], ["most"], keepdims=0)
    graph.node.extend([best, most])
    graph.output.extend([make("best", 7, ["batch"]), make("most", 1, [])])
    path, sched, out = (tmp_path / x for x in ("dense.onnx", "sched.json", "slim.onnx"))
    onnx.save(dense, path)
    result(capsys, "plan", "--onnx", path, "--mac-reduction", 0.3, "--output", sched)
    assert result(capsys, "export", "--keep-schedule", sched, "--output", out)["parity"]["passed"]
    low = ["quantize", path, "--precision", "fp16", "--output", tmp_path / "low.onnx"]
    assert 0 < result(capsys, *low)["parity"]["relative"] < 0.02


@pytest.mark.parametrize("chosen", [["--dynamic", "merge"], ["--impact", "cover"]])
def test_a_class_given_out_first_is_not_what_slim_measures(
    chosen: list[str], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of the same model that gives out its logits alone; evaluate takes the logits too."""
    plain, both = onnx.ModelProto(), onnx.ModelProto()
    plain.CopyFrom(two_classes())
    name = plain.graph.output[0].name
    both.CopyFrom(plain)
    both.graph.node.append(onnx.helper.make_node("ArgMax", [name], ["best"], axis=1, keepdims=0))
    both.graph.output.insert(0, onnx.helper.make_tensor_value_info("best", 7, ["batch"]))
    found = {}
    for kind, model in (("plain", plain), ("both", both)):
        path, slim = tmp_path / f"{kind}.onnx", tmp_path / f"{kind}.slim.onnx"
        onnx.save(model, path)
        words = ["--onnx", path, "--data-dir", photographs, "--mac-reduction", 0.3, "--images", 16]
        made = result(capsys, "slim", *words, *PIXELS, *chosen, "--output", slim)
        judged = result(capsys, "evaluate", slim, "--data-dir", photographs)
        found[kind] = (made["held_out"], made["parity"]["relative"], judged["top1"])
    assert found["both"] == found["plain"]
    assert found["plain"][1] > 0


def test_a_single_number_has_no_largest(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a regression the agreement of classes is not told, rather than told as perfect."""
    model = onnx.ModelProto()
    model.CopyFrom(two_classes())
    name = model.graph.output[0].name
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "only"))
    model.graph.node.append(onnx.helper.make_node("Gather", [name, "only"], ["one"], axis=1))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("one", 1, ["batch", 1]))
    onnx.save(model, tmp_path / "one.onnx")
    words = ["--onnx", tmp_path / "one.onnx", "--data-dir", photographs, "--images", 16, *PIXELS]
    words += ["--mac-reduction", 0.3, "--output", tmp_path / "slim.onnx"]
    made = result(capsys, "slim", *words)
    assert made["held_out"]["after"]["top1_agreement"] is None
    main(["slim", *map(str, words)])
    told = " ".join(capsys.readouterr().out.split())
    assert "of the outputs, of 2 held-out images" in told


def test_a_head_that_pools_by_attention_is_no_block_to_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, dense = tmp_path / "source.onnx", tmp_path / "dense.onnx"
    onnx.save(export("map", "dynamo18", True), source)
    result(capsys, "export", "--onnx", source, "--output", dense)
    out = tmp_path / "p[1].onnx"
    made = result(capsys, "build", dense, "--backend", "onnxruntime", "--output", out)
    assert made["tokens_per_block"] == [16, 16, 16]
    assert out.is_file()


def test_pool_kept_asks_nothing_of_a_head_that_reads_one_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, sched, out = (tmp_path / name for name in ("dense.onnx", "sched.json", "slim.onnx"))
    onnx.save(export("plain", "dynamo18", True), dense)
    result(capsys, "plan", "--onnx", dense, "--mac-reduction", 0.3, "--output", sched)
    words = ["--keep-schedule", sched, "--pool-kept"]
    result(capsys, "export", *words, "--output", out)
    found = result(capsys, "verify", *words, "--dense", dense, "--slim", out, "--images", 4)
    assert found["passed"]


def test_an_order_that_is_chosen_when_it_runs_stays() -> None:
    flipped = onnx.ModelProto()
    flipped.CopyFrom(export("plain", "dynamo18", True))
    graph = flipped.graph
    name = graph.output[0].name
    for number, value in (("my.zero", 0), ("my.one", 1)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.int64(value), number))
    make = onnx.helper.make_node
    graph.node.extend(
        [
            make("Shape", [name], ["my.sizes"]),
            make("Gather", ["my.sizes", "my.zero"], ["my.count"]),
            make("Sub", ["my.count", "my.one"], ["my.last"]),
            make("Range", ["my.zero", "my.count", "my.one"], ["my.places"]),
            make("Sub", ["my.last", "my.places"], ["my.order"]),
            make("Gather", [name, "my.order"], ["my.flipped"], axis=0),
        ]
    )
    graph.output[0].name = "my.flipped"
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    wanted = run(export("plain", "dynamo18", True), images)[::-1]
    np.testing.assert_allclose(run(flipped, images), wanted)
    np.testing.assert_allclose(run(dense_graph(flipped).model, images), wanted, atol=1e-4)


def test_the_standard_domain_may_be_spelled_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spelled = onnx.ModelProto()
    spelled.CopyFrom(export("plain", "dynamo18", True))
    spelled.opset_import[0].domain = "ai.onnx"
    path = tmp_path / "dense.onnx"
    onnx.save(spelled, path)
    result(capsys, "plan", "--onnx", path, "--output", tmp_path / "sched.json")
    words = ["--keep-schedule", tmp_path / "sched.json", "--output", tmp_path / "slim.onnx"]
    assert result(capsys, "export", *words)["parity"]["passed"]
