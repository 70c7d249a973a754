"""What an engine must show: tokens that were asked for, and under --strict its kernels.

The build process is a fake at the edge, which writes a file and reports what the test says; engines
that do not tell their kernels cannot be had here otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from slimdeploy.engine import building
from slimdeploy.engine.building import BuildRequest, Built, build_engine
from slimdeploy.engine.building.report import BuildReport
from slimdeploy.engine.layers import EngineLayer
from slimdeploy.engine.trt.parse import Attention
from slimdeploy.errors import GateError
from slimdeploy.manifest import read_manifest, write_manifest
from tests.graph.vit_text import vit

BLOCKS = (Attention("s1", 6, 6), Attention("s2", 6, 6))


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(vit(), path)
    return path


def built(
    monkeypatch: pytest.MonkeyPatch, model: Path, report: dict[str, Any], **options: Any
) -> Built:
    """The engine of `model`, of whose build this is reported."""
    made = BuildReport("1.0", None, "a GPU", (), (), **{"attentions": (), **report})

    def run_build(folder: Path, task: dict[str, Any], progress: Any) -> BuildReport:
        (folder / task["target"]).write_bytes(b"an engine")
        return made

    monkeypatch.setattr(building, "run_build", run_build)
    return build_engine(model, BuildRequest("tensorrt"), model.with_name("m.plan"), **options)


def test_a_schedule_that_nothing_can_be_compared_with(
    dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"expected": [6, 6], "expected_by": Path("sched.json")}
    with pytest.raises(GateError, match=r"m\.onnx: no attention was found .* leave out --keep-sch"):
        built(monkeypatch, dense, {}, **options)
    assert [path.name for path in dense.parent.iterdir()] == ["m.onnx"]


def test_an_engine_that_does_not_tell_is_judged_by_the_network(
    dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"expected": [6, 6], "expected_by": Path("sched.json")}
    dense.with_name("sched.json").write_text("{}")
    monkeypatch.chdir(dense.parent)
    made = built(monkeypatch, dense, {"attentions": BLOCKS}, **options)
    assert made.record.blocks_read_from == "network"
    with pytest.raises(GateError, match="block 2 computes 6 tokens"):
        built(monkeypatch, dense, {"attentions": BLOCKS}, **{**options, "expected": [6, 3]})


def test_a_manifest_that_nothing_can_be_compared_with_is_a_note(
    dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for this comparison, so its failing must not keep anybody from the engine."""
    write_manifest(dense, kind="slim-onnx", made_from={}, command=(), tokens_per_block=[6, 6])
    made = built(monkeypatch, dense, {})
    assert made.record.notes[0].endswith("its tokens were not compared with " + f"{dense}.json")
    assert read_manifest(dense.with_name("m.plan")).tokens_per_block == ()


@pytest.mark.parametrize(
    "layers", [(), (EngineLayer("s", "signal", ()),)], ids=["none", "no kernel"]
)
def test_strict_needs_kernels_to_look_at(
    dense: Path, layers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = {"attentions": BLOCKS, "layers": layers}
    with pytest.raises(GateError) as caught:
        built(monkeypatch, dense, report, strict=True)
    assert "m.plan: the build told no kernels" in str(caught.value)
    assert "as --strict asks: leave it out, or build with" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in dense.parent.iterdir()] == ["m.onnx"]
    built(monkeypatch, dense, report)
