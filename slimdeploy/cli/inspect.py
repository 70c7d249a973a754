"""`slimdeploy inspect`: what is this file?"""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from slimdeploy.cli.common import load_onnx, show, summary, summary_table
from slimdeploy.errors import InputError
from slimdeploy.files import read_bytes
from slimdeploy.manifest import manifest_path, read_manifest
from slimdeploy.schedule import KeepSchedule


def inspect(file: Path, *, json: bool = False) -> None:
    """What is this file? A keep schedule, an ONNX graph or a manifest, in words.

    Args:
        file: the file.
        json: print the result as JSON.
    """
    if file.suffix == ".onnx":
        result, table = _graph(file)
    elif file.suffix == ".json":
        result, table = _record(file)
    else:
        raise InputError(f"{file}: give a keep schedule (.json), a manifest or an .onnx file")
    show(result, table, json)


def _graph(file: Path) -> tuple[dict[str, Any], RenderableType]:
    from slimdeploy.graph import check_graph
    from slimdeploy.measure.macs import count_macs

    blocks = [count._asdict() for count in check_graph(load_onnx(file))]
    macs = count_macs(file).total
    result: dict[str, Any] = {"file": str(file), "macs": macs, "blocks": blocks}
    if manifest_path(file).is_file():
        result["manifest"] = read_manifest(file).model_dump(mode="json")
    lines = [f"{file}: {len(blocks)} blocks, {macs / 1e9:.4f} GMAC an image"]
    lines += [
        f"  block {i}: {b['queries']} queries, {b['keys']} keys" for i, b in enumerate(blocks, 1)
    ]
    return result, "\n".join(lines)


def _record(file: Path) -> tuple[dict[str, Any], RenderableType]:
    try:
        data = json_module.loads(read_bytes(file))
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise InputError(f"{file}: neither a keep schedule nor a manifest")
    if "artifact" in data:
        record = read_manifest(file).model_dump(mode="json")
        return record, json_module.dumps(record, indent=2)
    schedule = KeepSchedule.read(file)
    return {"schedule": str(file), **summary(schedule)}, summary_table(schedule)
