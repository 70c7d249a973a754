"""What `doctor` makes of what is installed: machines written down here, and this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimdeploy.engine.doctor import Facts, gather, remarks, verbs
from slimdeploy.engine.gpu import Gpu
from slimdeploy.engine.host import Host, installed
from slimdeploy.engine.jetpack import jetpack_of

ORIN = Gpu("Orin", (8, 7), (12, 6), 6_000_000_000)
SERVER = Gpu("H200", (9, 0), (12, 4), 140_000_000_000)


def facts(
    gpu: Gpu | None = None,
    l4t: tuple[int, int] | None = None,
    broken: dict[str, str] | None = None,
    **packages: str,
) -> Facts:
    named = {name.replace("_", "-"): version for name, version in packages.items()}
    return Facts(Host("linux-x86_64", gpu, {}, l4t), named, broken or {})


CASES: list[tuple[Facts, str, str]] = [
    (
        facts(onnxruntime="1.31.1", onnxruntime_gpu="1.31.1"),
        "problem",
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
    ),
    (
        facts(broken={"onnxruntime": "no attribute 'get_available_providers'"}, onnxruntime="1"),
        "problem",
        "pip install --force-reinstall onnxruntime",
    ),
    (facts(SERVER, onnxruntime_gpu="1.31.1"), "problem", "needs CUDA 13, the driver runs 12.4"),
    (facts(onnxruntime_gpu="1.26.0"), "note", "no GPU here: it runs on the CPU only"),
    (
        facts(SERVER, broken={"tensorrt": "its library libnvinfer.so.11 ..."}, tensorrt="11.4.0"),
        "problem",
        "its library libnvinfer.so.11",
    ),
    (facts(SERVER, tensorrt="11.4.0"), "note", "polygraphy is missing to run them"),
    (facts(), "note", "no NVIDIA driver"),
    (facts(SERVER), "ok", "H200, sm_90, 140.0 GB free"),
    (facts(ORIN, (36, 4), tensorrt="10.3.0"), "note", "L4T 36.4 comes with TensorRT 10.3"),
    (facts(ORIN, (36, 4), tensorrt="11.4.0"), "problem", "10.3 belongs here: remove it"),
    (facts(ORIN, (36, 4)), "problem", "python -m venv --system-site-packages"),
    (facts(ORIN, (35, 4)), "note", "too old for slimdeploy: update to JetPack 6.1"),
    (facts(nvidia_modelopt="0.47.0"), "note", "keep it in an environment of its own"),
]


@pytest.mark.parametrize(("machine", "level", "words"), CASES)
def test_remarks(machine: Facts, level: str, words: str) -> None:
    found = [remark for remark in remarks(machine) if words in remark.message]
    assert [remark.level for remark in found] == [level]


@pytest.mark.parametrize("version", ["10.16.2", "11.4.1"])
def test_jetpack_7_2_takes_either_tensorrt(version: str) -> None:
    found = remarks(facts(ORIN, (39, 2), tensorrt=version, polygraphy="0.53"))
    assert "problem" not in {remark.level for remark in found}


def test_problems_come_first() -> None:
    levels = [r.level for r in remarks(facts(SERVER, onnxruntime="1", onnxruntime_gpu="1.31"))]
    assert levels == sorted(levels, key=("problem", "note", "ok").index)
    assert levels[0] == "problem"


def test_what_each_verb_lacks() -> None:
    bare = verbs(facts())
    assert bare["plan --onnx, inspect, export --onnx"] == []
    assert bare["build --backend tensorrt"] == ["tensorrt", "GPU"]
    assert bare["finetune"] == ["torch", "timm", "safetensors"]
    server = verbs(facts(SERVER, tensorrt="11.4.0", onnxruntime_gpu="1.31.1"))
    assert server["build --backend tensorrt"] == []
    assert server["slim --onnx, verify, profile, evaluate"] == []
    broken = verbs(facts(SERVER, broken={"tensorrt": "no library"}, tensorrt="11.4.0"))
    assert broken["build --backend tensorrt"] == ["tensorrt"]


@pytest.mark.parametrize(
    ("l4t", "tensorrt"),
    [((39, 2), (10, 16)), ((38, 4), (10, 13)), ((36, 5), (10, 3)), ((36, 3), (8, 6))],
)
def test_the_tensorrt_of_each_jetpack(l4t: tuple[int, int], tensorrt: tuple[int, int]) -> None:
    assert jetpack_of(l4t).tensorrt == tensorrt


@pytest.mark.parametrize("name", ["tensorrt_cu12", "tensorrt_cu13"])
def test_tensorrt_for_one_cuda_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installed("tensorrt") is not None:
        pytest.skip("tensorrt is installed here")
    folder = tmp_path / f"{name}-10.3.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 10.3.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = gather()
    assert found.packages["tensorrt"] == "10.3.0"
    assert "tensorrt" in found.broken  # there is a name here, and nothing behind it
    assert "tensorrt" in {remark.subject for remark in remarks(found)}


def test_this_machine() -> None:
    """The tests themselves need onnx and ONNX Runtime, so these are found and work."""
    found = gather()
    assert "onnxruntime" not in found.broken
    assert found.packages["onnx"]
    assert verbs(found)["build --backend onnxruntime"] == []
