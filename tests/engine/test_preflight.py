"""Whether an engine will load here, in words, from its manifest alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slimdeploy.engine.building.record import BuildRecord, RecordedGpu
from slimdeploy.engine.gpu import Gpu
from slimdeploy.engine.host import Host, jetson_release
from slimdeploy.engine.preflight import Verdict, preflight
from slimdeploy.errors import InputError, MissingError
from slimdeploy.manifest import Artifact, Manifest

ORIN = RecordedGpu(name="Orin", compute_capability=(8, 7))
COMMAND = ("slimdeploy", "build", "my model.onnx", "--output", "m.plan")


def record(**changes: Any) -> BuildRecord:
    """Of an engine that TensorRT 10.3 built on a Jetson Orin."""
    fields: dict[str, Any] = {
        "backend": "tensorrt",
        "version": "10.3.0",
        "platform": "linux-aarch64",
        "gpu": ORIN,
        "targets": "sm_87",
        "provider": None,
        "compute_capabilities": (),
        "version_compatible": False,
        "hardware_compatible": "none",
        "batch": (1, 4, 8),
        "workspace_gb": None,
        "optimization_level": None,
        "inputs": (),
        "outputs": (),
        "blocks": (),
        "blocks_read_from": "engine",
        "kernels": {},
        "kernels_read_from": "inspector",
        "findings": (),
        "notes": (),
        "parse_seconds": 0.1,
        "build_seconds": 1.0,
        "cached": False,
    }
    return BuildRecord(**{**fields, **changes})


def host(
    name: str = "Orin",
    sm: tuple[int, int] = (8, 7),
    platform: str = "linux-aarch64",
    **backends: str,
) -> Host:
    found = {key.replace("_", "-"): version for key, version in backends.items()}
    return Host(platform, Gpu(name, sm, (13, 0), 8_000_000_000), found)


def judged(made: BuildRecord, machine: Host, command: tuple[str, ...] = COMMAND) -> Verdict:
    artifact = Artifact(name="m.plan", sha256="0" * 64, bytes=1)
    manifest = Manifest(
        kind="tensorrt-engine", slimdeploy="test", artifact=artifact, command=command
    )
    return preflight(manifest, made, machine)


def test_the_machine_that_built_it_loads_it() -> None:
    verdict = judged(record(), host(tensorrt="10.3.0"))
    assert verdict.loads
    assert verdict.cautions == ()
    verdict.require(Path("m.plan"))


REFUSED: list[tuple[dict[str, Any], Host, str]] = [
    ({}, host(tensorrt="11.4.0"), "built by TensorRT 10.3.0; this host has 11.4.0"),
    (
        {},
        host(platform="linux-x86_64", tensorrt="10.3.0"),
        "built on linux-aarch64; this host is linux-x86_64",
    ),
    (
        {"version_compatible": True, "hardware_compatible": "ampere-plus"},
        host(platform="linux-x86_64", tensorrt="11.4.0"),
        "built on linux-aarch64; this host is linux-x86_64",
    ),
    (
        {},
        host("H200", (9, 0), tensorrt="10.3.0"),
        "built for sm_87 (Orin); this GPU is sm_90",
    ),
    (
        {"version_compatible": True, "version": "11.0.0"},
        host(tensorrt="10.16.1"),
        "built by TensorRT 11.0.0; this host has 10.16.1 which loads no engine of a newer one",
    ),
    (
        {"hardware_compatible": "same-compute-capability"},
        host("H200", (9, 0), tensorrt="10.3.0"),
        "built for sm_87 (Orin)",
    ),
    (
        {"hardware_compatible": "ampere-plus"},
        host("T4", (7, 5), tensorrt="10.3.0"),
        "this GPU is sm_75",
    ),
    (
        {"backend": "tensorrt-rtx", "version": "1.7.1", "compute_capabilities": ("8.6", "8.9")}
        | {"targets": "8.6, 8.9", "gpu": None},
        host("RTX 5090", (12, 0), tensorrt_rtx="1.7.1"),
        "compiled for compute capability 8.6, 8.9; this GPU has sm_120",
    ),
    (
        {"backend": "tensorrt-rtx", "version": "1.6.0", "gpu": None},
        host("RTX 3090", (8, 6), tensorrt_rtx="1.7.1"),
        "built by TensorRT-RTX 1.6.0; this host has 1.7.1",
    ),
]


@pytest.mark.parametrize(("made", "machine", "words"), REFUSED)
def test_an_engine_for_another_machine(made: dict[str, Any], machine: Host, words: str) -> None:
    verdict = judged(record(**made), machine)
    with pytest.raises(InputError) as caught:
        verdict.require(Path("m.plan"))
    assert words in str(caught.value)
    assert str(caught.value).endswith(
        "rebuild with slimdeploy build 'my model.onnx' --output m.plan"
    )
    assert "\n" not in str(caught.value)


BUILD = ("slimdeploy", "build", "m.onnx", "--backend", "tensorrt-rtx")


@pytest.mark.parametrize(
    "targets",
    [
        ("--compute-capability", "8.6,8.9"),
        ("--compute-capability=8.6",),
        ("--compute-capability", "8.6", "--compute-capability=8.9"),
    ],
    ids=" ".join,
)
def test_an_engine_is_rebuilt_for_the_gpu_that_is_here(targets: tuple[str, ...]) -> None:
    rtx = {"backend": "tensorrt-rtx", "version": "1.7.1", "compute_capabilities": ("8.6",)}
    made = record(**rtx, targets="8.6", gpu=None)
    machine = host("RTX 5090", (12, 0), tensorrt_rtx="1.7.1")
    verdict = judged(made, machine, (*BUILD, *targets, "--output", "m.plan"))
    words = "slimdeploy build m.onnx --backend tensorrt-rtx --output m.plan"
    assert verdict.rebuild == f"{words} --compute-capability 12.0"
    assert verdict.refused
    bare = judged(made, Host("linux-x86_64", None, {}), (*BUILD, *targets))
    assert bare.rebuild == " ".join((*BUILD, *targets))
    for_orin = judged(made, host(tensorrt_rtx="1.7.1"), (*BUILD, *targets))
    assert for_orin.rebuild == "slimdeploy build m.onnx --backend tensorrt"


def test_an_engine_for_several_gpus_is_rebuilt_for_all_of_them() -> None:
    rtx = {"backend": "tensorrt-rtx", "version": "1.6.0", "compute_capabilities": ("8.6", "8.9")}
    command = (*BUILD, "--compute-capability", "8.6,8.9")
    verdict = judged(
        record(**rtx, gpu=None), host("RTX 3090", (8, 6), tensorrt_rtx="1.7.1"), command
    )
    assert verdict.rebuild == " ".join(command)


LOADS: list[tuple[dict[str, Any], Host]] = [
    ({"version_compatible": True}, host(tensorrt="11.4.0")),
    ({"hardware_compatible": "ampere-plus"}, host("H200", (9, 0), tensorrt="10.3.0")),
    (
        {"backend": "tensorrt-rtx", "version": "1.7.1", "compute_capabilities": ("8.6",)}
        | {"gpu": None},
        host("RTX 3090", (8, 6), tensorrt_rtx="1.7.1"),
    ),
    (
        {"backend": "tensorrt-rtx", "version": "1.7.1", "gpu": None},
        host("RTX 5090", (12, 0), tensorrt_rtx="1.7.1"),
    ),
]


@pytest.mark.parametrize(("made", "machine"), LOADS)
def test_an_engine_that_was_built_for_others_too(made: dict[str, Any], machine: Host) -> None:
    judged(record(**made), machine).require(Path("m.plan"))


def test_what_the_machine_lacks_comes_first() -> None:
    bare = Host("linux-x86_64", None, {})
    with pytest.raises(MissingError) as caught:
        judged(record(), bare).require(Path("m.plan"))
    assert str(caught.value) == (
        "m.plan: TensorRT engines run on an NVIDIA GPU, which this machine lacks; TensorRT is not "
        "installed: pip install 'slimdeploy[tensorrt]'"
    )


def test_an_optimised_model_needs_no_gpu_unless_its_provider_does() -> None:
    bare = Host("linux-x86_64", None, {"onnxruntime": "1.31.1"})
    made = {"backend": "onnxruntime", "version": "1.30.0", "gpu": None}
    assert judged(record(**made, provider="cpu"), bare).loads
    assert not judged(record(**made, provider="cuda"), bare).loads


def test_what_is_not_promised_is_a_caution() -> None:
    verdict = judged(record(), host("AGX Orin", tensorrt="10.3.0"))
    assert verdict.loads
    assert verdict.cautions == ("tuned on Orin, this is AGX Orin: it runs, perhaps slower",)
    rtx = record(backend="tensorrt-rtx", version="1.7.1", gpu=None)
    verdict = judged(rtx, host(platform="linux-x86_64", tensorrt_rtx="1.7.1"))
    assert verdict.loads
    assert verdict.cautions == ("built on linux-aarch64; this host is linux-x86_64",)


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n", (36, 4)),
        ("# R38 (release), REVISION: 2.0\n", (38, 2)),
        ("something else", None),
        (None, None),
    ],
)
def test_the_jetson_release(tmp_path: Path, text: str | None, release: object) -> None:
    if text is not None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "nv_tegra_release").write_text(text)
    assert jetson_release(tmp_path) == release
