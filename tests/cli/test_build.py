"""`build` and `inspect` of engines, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.cli import main
from slimdeploy.engine import open_engine
from slimdeploy.manifest import write_manifest
from tests.cli.commands import ORT, PIXELS, RTX, error_line, left
from tests.conftest import schedule
from tests.graph.vit_text import TOKENS, vit


def result(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """What a command with --json gives."""
    main([*(str(a) for a in arguments), "--json"])
    shown = capsys.readouterr()
    assert shown.err == ""
    found: dict[str, Any] = json.loads(shown.out)
    return found


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")


@pytest.mark.usefixtures("rtx")
def test_an_engine_and_its_manifest(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, layers = good.parent / "m.plan", good.parent / "layers.json"
    arguments = (good, *RTX, "--compute-capability", "8.6,8.9", "--max-batch", 4)
    made = result(capsys, "build", *arguments, "--layers", layers, "--output", plan)
    assert made["tokens_per_block"] == [TOKENS, TOKENS]
    assert made["blocks_read_from"] == "engine"
    assert made["batch"] == [1, 4, 4]
    assert made["compute_capabilities"] == ["8.6", "8.9"]
    assert made["inputs"][0] == {"name": "x0", "shape": [None, TOKENS, 4], "dtype": "float32"}
    assert made["precision"]["float32"] > 100
    assert len(json.loads(layers.read_text())) >= made["kernels"]["kernels"] > 5
    assert left(good.parent) == {"m.onnx", "m.plan", "m.plan.json", "layers.json"}
    manifest = json.loads((good.parent / "m.plan.json").read_text())
    assert manifest["command"][:3] == ["slimdeploy", "build", str(good)]
    assert manifest["versions"]["tensorrt_rtx"] == made["version"]


@pytest.mark.usefixtures("rtx")
def test_the_same_engine_is_not_built_twice(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = result(capsys, "build", good, *RTX, "--output", good.parent / "a.plan")
    again = result(capsys, "build", good, *RTX, "--output", good.parent / "b.plan")
    other = result(
        capsys, "build", good, *RTX, "--max-batch", 2, "--output", good.parent / "c.plan"
    )
    assert (first["cached"], again["cached"], other["cached"]) == (False, True, False)
    files = [(good.parent / f"{name}.plan").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
    same = ("blocks", "kernels", "findings", "precision")
    assert [first[key] for key in same] == [again[key] for key in same]
    entry = next((good.parent.parent / "cache").rglob("engine"))
    for damaged in (good.parent.parent / "cache").rglob("engine"):
        damaged.write_bytes(b"not an engine")
    healed = result(capsys, "build", good, *RTX, "--output", good.parent / "d.plan")
    assert healed["cached"] is False
    assert entry.read_bytes() != b"not an engine" or entry.parent.exists()


@pytest.mark.usefixtures("rtx")
def test_weights_beside_the_model_are_found_and_are_part_of_the_key(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        path = folder / "m.onnx"
        onnx.save(
            vit(seed=seed), path, save_as_external_data=True, location="w.bin", size_threshold=0
        )
        made = result(capsys, "build", path, *RTX, "--output", folder / f"{seed}.plan")
        assert made["cached"] is False
        (folder / "w.bin").unlink()
    assert (folder / "0.plan").read_bytes() != (folder / "1.plan").read_bytes()


@pytest.mark.usefixtures("rtx")
def test_a_cache_that_cannot_be_written_is_a_note(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = good.parent / "m.plan"
    made = result(capsys, "build", good, *RTX, "--cache-dir", "/sys/no", "--output", plan)
    assert made["notes"] == ["/sys/no/engines: the engine was not cached (Operation not permitted)"]
    assert plan.is_file()


@pytest.mark.usefixtures("rtx")
def test_preprocessing_and_schedule_go_along(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the model's manifest, so that `evaluate` and the server know them."""
    write_manifest(
        good,
        kind="slim-onnx",
        made_from={},
        command=(),
        preprocessing=PIXELS,
        tokens_per_block=[TOKENS, TOKENS],
    )
    keep = [list(range(TOKENS))] * 2
    path = good.parent / "sched.json"
    path.write_text(schedule(keep, depth=2).model_dump_json())
    plan = good.parent / "m.plan"
    result(capsys, "build", good, *RTX, "--keep-schedule", path, "--output", plan)
    manifest = json.loads((good.parent / "m.plan.json").read_text())
    assert manifest["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert set(manifest["made_from"]) == {"onnx", "schedule"}
    assert manifest["tokens_per_block"] == [TOKENS, TOKENS]


@pytest.mark.usefixtures("rtx")
def test_the_models_own_manifest_is_what_tokens_are_compared_with(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(good, kind="slim-onnx", made_from={}, command=(), tokens_per_block=[TOKENS, 3])
    line = error_line(capsys, 1, "build", good, *RTX, "--output", good.parent / "m.plan")
    assert f"block 2 computes {TOKENS} tokens, {good}.json says 3; nothing was written" in line
    assert left(good.parent) == {"m.onnx", "m.onnx.json"}


@pytest.mark.usefixtures("rtx")
def test_a_dry_run_writes_nothing(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = good.parent / "m.plan"
    main(["build", str(good), *RTX, "--dry-run", "--output", str(plan)])
    assert "would build" in capsys.readouterr().out
    assert left(good.parent) == {"m.onnx"}


def test_onnxruntime_writes_what_its_optimiser_leaves(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = good.parent / "fast.onnx"
    made = result(capsys, "build", good, *ORT, "--output", output)
    assert made["targets"] == "CPUExecutionProvider"
    assert made["tokens_per_block"] == [TOKENS, TOKENS]
    assert made["precision"]["float32"] > 100
    images = np.random.default_rng(0).normal(size=(3, TOKENS, 4)).astype(np.float32)
    with open_engine(good) as before, open_engine(output) as after:
        np.testing.assert_allclose(
            before.infer(images)["y"], after.infer(images)["y"], rtol=1e-4, atol=1e-5
        )
    assert left(good.parent) == {"m.onnx", "fast.onnx", "fast.onnx.json"}


def test_a_model_that_is_no_transformer_builds_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.graph.text import model

    path = folder / "m.onnx"
    onnx.save(model("float[B,4] x => float[B,4] y", "y = Tanh(x)"), path)
    made = result(capsys, "build", path, *ORT, "--output", folder / "fast.onnx")
    assert made["blocks"] == []


@pytest.mark.usefixtures("rtx")
def test_inspect_says_what_an_engine_is_and_whether_it_loads(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from slimdeploy.engine.gpu import gpu_or_none

    plan = good.parent / "m.plan"
    main(["build", str(good), *RTX, "--output", str(plan)])
    built = capsys.readouterr().out
    main(["inspect", str(plan)])
    shown = capsys.readouterr().out
    assert "tensorrt-rtx-engine" in shown
    assert f"blocks 1-2    {TOKENS} queries, {TOKENS} keys (read from the engine)" in shown
    assert "finding       blocks whose attention is not one kernel: 2 of 2" in shown
    assert set(built.splitlines()[1:]) <= set(shown.splitlines())
    if gpu_or_none() is None:
        assert "does not load here: TensorRT-RTX engines run on an NVIDIA GPU" in shown
    found = result(capsys, "inspect", plan)
    assert found["preflight"]["loads"] is (gpu_or_none() is not None)
    assert found["manifest"]["results"]["build"]["backend"] == "tensorrt-rtx"


def test_vit_text_has_two_blocks() -> None:
    assert sum(node.op_type == "Softmax" for node in vit().graph.node) == 2
