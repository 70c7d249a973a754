"""The other end of a build process: start it, follow it, and say how it ended."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slimdeploy.engine.building.failures import killed
from slimdeploy.engine.building.report import BuildReport
from slimdeploy.engine.building.worker import REPORT, TASK
from slimdeploy.errors import GateError, GraphError, InputError, MissingError

Progress = Callable[[str, float], None]

_ERRORS = {error.__name__: error for error in (GateError, GraphError, InputError, MissingError)}
_WORKER = [sys.executable, "-m", "slimdeploy.engine.building.worker"]


def run_build(folder: Path, task: dict[str, Any], progress: Progress) -> BuildReport:
    """Run a task in a process of its own; the engine is in `folder` when this returns.

    Raises:
        SlimdeployError: the one that the process told of, or what its death means.
        OSError: if the process could not write.
    """
    (folder / TASK).write_text(json.dumps(task))
    noise = folder / "noise.txt"
    with noise.open("wb") as stderr:
        process = subprocess.Popen(
            [*_WORKER, str(folder)], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        try:
            failure = _follow(process, progress)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    if failure is not None:
        raise failure
    if status < 0:
        raise killed(task["model"], -status)
    if status or not (folder / REPORT).is_file():  # a bug of ours: its traceback is worth seeing
        raise RuntimeError(f"the build process failed:\n{noise.read_text(errors='replace')}")
    return BuildReport.from_json(json.loads((folder / REPORT).read_text()))


def _follow(process: subprocess.Popen[str], progress: Progress) -> Exception | None:
    failure: Exception | None = None
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if "error" not in event:
            progress(event["doing"], event["share"])
        elif event["error"] == "OSError":
            failure = OSError(0, event["message"])
        else:
            failure = _ERRORS.get(event["error"], InputError)(event["message"])
    return failure
