"""What `slimdeploy sweep` writes down."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slimdeploy.cli.sweep.run import Sweep, Swept
from slimdeploy.macs import dense_macs
from slimdeploy.manifest import package_versions
from slimdeploy.measure.onnx_file import model_digest
from slimdeploy.measure.sweep import DropBy, SweepGroup, pareto

_INTERVALS = {
    "difference": "95 %, Tango's score interval, paired with the dense model by test image; of a "
    "group of several seeds, bootstrap over test images, each with its mean over the seeds",
    "calibration_errors": "95 %, basic bootstrap over test images",
    "speedup": "as the timing protocol says; of a group, from the lowest end of its seeds' to the "
    "highest",
}


def sweep_record(
    asked: Sweep,
    swept: Swept,
    chosen: SweepGroup | None,
    gate: tuple[float | None, DropBy],
    command: Sequence[str],
    packages: Sequence[str],
) -> dict[str, Any]:
    """Settings, the dense model's row, a row a point, the groups of seeds, and the choice.

    `front` marks what no other point of fewer or as many MACs beats in top-1.
    """
    timing = None
    if asked.timing is not None:
        timing = {**asked.timing.to_json(), **(swept.protocol or {}), "cores": os.cpu_count()}
    max_drop, by = gate
    return {
        "format": 1,
        "kind": "sweep",
        "settings": asked.settings,
        "test": {"folder": _shown(asked.test.root), "images": len(asked.test)},
        "timing": timing,
        "intervals": _INTERVALS,
        "dense": _dense_row(asked, swept),
        "points": [{**p.model_dump(mode="json"), "gmac": p.macs / 1e9} for p in swept.points],
        "groups": _groups(swept.groups),
        "gate": None if max_drop is None else {"max_top1_drop": max_drop, "drop_by": by},
        "chosen": None if chosen is None else [point.name for point in chosen.points],
        "command": list(command),
        "versions": package_versions(packages),
    }


def _dense_row(asked: Sweep, swept: Swept) -> dict[str, Any]:
    macs = dense_macs(asked.source.geometry).total
    return {
        "file": _shown(swept.dense_file),
        "sha256": model_digest(swept.dense_file),
        "macs": macs,
        "gmac": macs / 1e9,
        **swept.dense.to_json(),
    }


def _groups(groups: Sequence[SweepGroup]) -> list[dict[str, Any]]:
    front = pareto([group.macs for group in groups], [group.top1 for group in groups])
    return [
        {
            "impact": group.impact,
            "wanted": group.wanted,
            "points": [point.name for point in group.points],
            "macs": group.macs,
            "top1": group.top1,
            "difference": group.difference,
            "difference_interval": asdict(group.interval),
            "speedups": [asdict(speed) for speed in group.speeds],
            "front": best,
        }
        for group, best in zip(groups, front, strict=True)
    ]


def _shown(path: Path) -> str:
    return path.as_posix()
