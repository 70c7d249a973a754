"""`slimdeploy inspect`: what is this file?"""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from slimdeploy.cli.common import separated, show, summary, summary_table
from slimdeploy.cli.inspect.records import manifest_lines, record_lines, schedule_line
from slimdeploy.engine import PLANS
from slimdeploy.errors import InputError
from slimdeploy.files import read_bytes
from slimdeploy.manifest import read_manifest
from slimdeploy.schedule import KeepSchedule


def inspect(file: Path, *, outputs: tuple[str, ...] = (), json: bool = False) -> None:
    """What is this file? A schedule, an ONNX graph, an engine, a manifest or another record.

    Of a graph: its blocks and the tokens of each, grid, prefix tokens, heads, widths, what the head
    reads, the tables that run along the tokens, MACs, and whether images could decide for
    themselves (--dynamic); and where tokens cannot be dropped, the node and the reason.

    Of an engine: how it was built, the tokens of each block, what its kernels show, and whether it
    will load on this machine; it is not loaded for that.

    Args:
        file: the file.
        outputs: of a graph with several outputs, those that are wanted.
        json: print the result as JSON.
    """
    table: RenderableType
    if file.suffix == ".onnx":
        from slimdeploy.cli.inspect.graph import graph_report

        result, table = graph_report(file, separated(outputs))
    elif file.suffix in PLANS:
        from slimdeploy.cli.inspect.engine import plan_report

        result, table = plan_report(file)
    elif file.suffix == ".json":
        result, table = _record(file)
    else:
        raise InputError(
            f"{file}: give a keep schedule (.json), a manifest, an .onnx or a .plan file"
        )
    show(result, table, json)


def _record(file: Path) -> tuple[dict[str, Any], RenderableType]:
    try:
        data = json_module.loads(read_bytes(file))
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON ({error})") from error
    except RecursionError as error:
        raise InputError(f"{file}: no record of slimdeploy: it is nested too deeply") from error
    if not isinstance(data, dict):
        raise InputError(f"{file}: neither a keep schedule nor a manifest")
    if "artifact" in data:
        record = read_manifest(file)
        return record.model_dump(mode="json"), "\n".join(manifest_lines(file, record))
    try:
        lines = record_lines(file, data)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{file}: a damaged record of kind '{data['kind']}'") from error
    if lines is not None:
        return data, "\n".join(lines)
    if not {"model", "layers"} & data.keys():
        raise InputError(f"{file}: neither a keep schedule nor a manifest nor a record")
    schedule = KeepSchedule.read(file)
    told = Group(schedule_line(file, schedule), summary_table(schedule))
    return {"schedule": str(file), **summary(schedule)}, told
