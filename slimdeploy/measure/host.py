"""What a measurement was taken on."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor's name, as the system gives it; never empty."""
    named = _cpu_fields().get("model name")
    return named or platform.processor() or platform.machine() or "unknown"


def sums_bytes_exactly() -> bool:
    """Whether the processor is known to have VNNI, which adds 8-bit products in 32 bits."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(_cpu_fields().get("flags", "").split())


def _cpu_fields() -> dict[str, str]:
    """What Linux tells of the last of its processors; elsewhere nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in fields}
