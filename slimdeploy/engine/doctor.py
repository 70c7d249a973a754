"""What this machine can do, what stands in the way, and what to install for it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from slimdeploy.engine.host import Host, installed, this_host
from slimdeploy.engine.jetpack import jetpack_of
from slimdeploy.engine.trt.bindings import Flavour, load_bindings, version_of
from slimdeploy.errors import InputError, MissingError, one_line

Level = Literal["ok", "note", "problem"]

PACKAGES = (
    "numpy",
    "onnx",
    "onnx-graphsurgeon",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "timm",
    "safetensors",
    "onnxscript",
    "tensorrt",
    "tensorrt-rtx",
    "polygraphy",
    "matplotlib",
    "nvidia-modelopt",
    "tritonclient",
)
_TRAIN = ("torch", "timm", "safetensors")
_RUNTIME = ("onnxruntime",)
_NEEDS: dict[str, tuple[str, ...]] = {
    "plan --onnx, inspect, export --onnx": (),
    "slim --onnx, verify, profile, evaluate": _RUNTIME,
    "quantize, sweep --onnx": _RUNTIME,
    "draw": ("matplotlib",),
    "build --backend onnxruntime": _RUNTIME,
    "build --backend tensorrt-rtx": ("tensorrt-rtx",),
    "build --backend tensorrt": ("tensorrt", "GPU"),
    "profile and evaluate of a .plan": ("polygraphy", "GPU"),
    "slim --model, plan --model": _TRAIN,
    "export --model": (*_TRAIN, "onnxscript"),
    "finetune": _TRAIN,
}
"""What each verb needs: packages, or a GPU."""

_FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")
_ORT_FOR_CUDA_13 = (1, 27)


@dataclass(frozen=True)
class Facts:
    """What is installed: packages by name with their versions, and why some cannot be loaded."""

    host: Host
    packages: Mapping[str, str]
    broken: Mapping[str, str]


@dataclass(frozen=True)
class Remark:
    """One thing worth knowing; a problem has a remedy in its message."""

    level: Level
    subject: str
    message: str

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)


def gather() -> Facts:
    """Facts of this machine. Runtimes are imported, since a broken one looks installed."""
    packages = {name: found for name in PACKAGES if (found := _version(name)) is not None}
    return Facts(this_host(), packages, dict(_broken(packages)))


def _version(name: str) -> str | None:
    if name in _FLAVOURS:  # which come under several names
        return installed(name)
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _broken(packages: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if {"onnxruntime", "onnxruntime-gpu"} & packages.keys():
        try:
            importlib.import_module("onnxruntime").get_available_providers()
        except (ImportError, AttributeError) as error:
            yield "onnxruntime", one_line(error)
    for flavour in _FLAVOURS:
        if flavour in packages:
            try:
                load_bindings(flavour)
            except (MissingError, InputError) as error:
                yield flavour, str(error)


def remarks(facts: Facts) -> list[Remark]:
    """What a person should know, problems first."""
    found = [*_runtime(facts), *_tensorrt(facts), *_machine(facts), *_others(facts)]
    order = ("problem", "note", "ok")
    return sorted(found, key=lambda remark: order.index(remark.level))


def _runtime(facts: Facts) -> Iterator[Remark]:
    both = {"onnxruntime", "onnxruntime-gpu"} <= facts.packages.keys()
    gpu = facts.packages.get("onnxruntime-gpu")
    if both:
        yield Remark(
            "problem",
            "onnxruntime",
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: pip "
            "uninstall both, then install one of slimdeploy[cpu] and slimdeploy[gpu]",
        )
    elif "onnxruntime" in facts.broken:
        yield Remark(
            "problem",
            "onnxruntime",
            f"cannot be used ({facts.broken['onnxruntime']}): pip install --force-reinstall "
            f"{'onnxruntime-gpu' if gpu else 'onnxruntime'}",
        )
    if gpu is None:
        return
    if facts.host.gpu is None:
        yield Remark("note", "onnxruntime-gpu", "no GPU here: it runs on the CPU only")
    elif version_of(gpu) >= _ORT_FOR_CUDA_13 and facts.host.gpu.driver_cuda < (13, 0):
        have = "{}.{}".format(*facts.host.gpu.driver_cuda)
        yield Remark(
            "problem",
            "onnxruntime-gpu",
            f"{gpu} needs CUDA 13, the driver runs {have}: update the driver, or install a "
            "version before 1.27",
        )


def _tensorrt(facts: Facts) -> Iterator[Remark]:
    for name in _FLAVOURS:
        if name in facts.broken:
            yield Remark("problem", name, facts.broken[name])
        elif name in facts.packages and "polygraphy" not in facts.packages:
            remedy = f"pip install 'slimdeploy[{name}]'"
            yield Remark(
                "note", name, f"builds engines, but polygraphy is missing to run them: {remedy}"
            )


def _machine(facts: Facts) -> Iterator[Remark]:
    host = facts.host
    if host.gpu is None:
        yield Remark("note", "GPU", "no NVIDIA driver: --backend tensorrt and .plan files need one")
    else:
        text = f"{host.gpu.name}, {host.gpu.sm}, {host.gpu.free_bytes / 1e9:.1f} GB free"
        yield Remark("ok", "GPU", text)
    if host.l4t is not None:
        yield from _jetson(facts, host.l4t)


def _jetson(facts: Facts, l4t: tuple[int, int]) -> Iterator[Remark]:
    jetpack = jetpack_of(l4t)
    wanted = "{}.{}".format(*jetpack.tensorrt)
    name = f"JetPack {jetpack.name}"
    yield Remark(
        "note", name, f"L4T {l4t[0]}.{l4t[1]} comes with TensorRT {wanted}: {jetpack.advice}"
    )
    have = facts.packages.get("tensorrt")
    if have is None:
        yield Remark(
            "problem",
            name,
            "TensorRT's Python package is not visible: make the environment with "
            "python -m venv --system-site-packages",
        )
    elif version_of(have) != jetpack.tensorrt and not (
        l4t >= (39, 2) and version_of(have) == (11, 4)
    ):
        yield Remark(
            "problem", name, f"tensorrt {have} is installed, {wanted} belongs here: remove it"
        )


def _others(facts: Facts) -> Iterator[Remark]:
    if "nvidia-modelopt" in facts.packages:
        yield Remark(
            "note",
            "nvidia-modelopt",
            "pins its own onnx and onnxruntime-gpu: keep it in an environment of its own",
        )


def verbs(facts: Facts) -> dict[str, list[str]]:
    """What each verb lacks here; [] for those that work."""
    have = {name for name in facts.packages if name not in facts.broken}
    if "onnxruntime-gpu" in have and "onnxruntime" not in facts.broken:
        have.add("onnxruntime")
    if facts.host.gpu is not None:
        have.add("GPU")
    return {verb: [need for need in needs if need not in have] for verb, needs in _NEEDS.items()}
