"""What this machine has, asked without loading any of it."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from slimdeploy.engine.gpu import Gpu, gpu_or_none

_DISTRIBUTIONS = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}


def usable_cores() -> int:
    """CPU cores this process may run on, which a container may have cut down."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Host:
    """This machine.

    Attributes:
        platform: operating system and processor, as "linux-aarch64".
        gpu: its first GPU, or None.
        backends: installed version by backend; those not installed are left out.
        l4t: NVIDIA's Linux for Tegra on a Jetson, as (36, 4); else None.
    """

    platform: str
    gpu: Gpu | None
    backends: dict[str, str]
    l4t: tuple[int, int] | None = None


def this_host() -> Host:
    """Facts of the machine that this runs on."""
    found = {name: installed(name) for name in _DISTRIBUTIONS}
    backends = {name: version for name, version in found.items() if version is not None}
    return Host(platform_name(), gpu_or_none(), backends, jetson_release())


def platform_name() -> str:
    """As "linux-x86_64"."""
    return f"{sys.platform}-{platform.machine()}"


def installed(backend: str) -> str | None:
    """Version of a backend's package, or None."""
    for name in _DISTRIBUTIONS[backend]:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def jetson_release(root: Path = Path("/")) -> tuple[int, int] | None:
    """The L4T release in /etc/nv_tegra_release, or None where this is no Jetson."""
    try:
        text = (root / "etc" / "nv_tegra_release").read_text()
    except OSError:
        return None
    found = re.search(r"R(\d+).*?REVISION: (\d+)", text)
    return (int(found[1]), int(found[2])) if found else None
