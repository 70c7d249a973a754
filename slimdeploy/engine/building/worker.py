"""The process that builds: `python -m slimdeploy.engine.building.worker FOLDER`.

What a build holds, on the machine and on the GPU, is given back when its process ends, and a crash
in a vendor's library ends this process and not the user's. FOLDER holds `task.json`; the engine
and `report.json` are written there. Events go to stdout, a JSON object a line.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from slimdeploy.engine.building.cache import EngineCache, engine_key
from slimdeploy.engine.building.report import BuildReport
from slimdeploy.engine.building.request import BuildRequest
from slimdeploy.engine.gpu import Gpu
from slimdeploy.errors import SlimdeployError

TASK, REPORT = "task.json", "report.json"
_SECONDS_BETWEEN = 0.1
_PR_SET_PDEATHSIG = 1


def main(folder: Path) -> int:
    """Build what the task in `folder` says; the exit code is 0 if the outcome was told."""
    with _events() as events:
        try:
            task = json.loads((folder / TASK).read_text())
            _end_with(task["parent"])
            _build(folder, task, events)
        except SlimdeployError as error:
            _tell(events, error=type(error).__name__, message=str(error))
        except OSError as error:  # the disk is full, or the file too large
            reason = error.strerror or str(error)
            _tell(events, error="OSError", message=reason)
    return 0


def _end_with(parent: int) -> None:
    """Let the kernel end this process with the one that started it, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        sys.exit(1)


def _events() -> IO[str]:
    """The pipe behind stdout; what a library prints there goes to stderr instead."""
    pipe = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(pipe, "w", buffering=1)


def _tell(events: IO[str], **event: Any) -> None:
    events.write(json.dumps(event) + "\n")


def _build(folder: Path, task: dict[str, Any], events: IO[str]) -> None:
    request, target = BuildRequest.from_json(task["request"]), folder / task["target"]
    model = Path(task["model"])
    if request.backend == "onnxruntime":
        from slimdeploy.engine.building.with_onnxruntime import OnnxRuntimeBuild

        _tell(events, doing="optimising", share=0.0)
        _report(folder, OnnxRuntimeBuild(model, request).run(target))
        return
    from slimdeploy.engine.building.with_tensorrt import TensorRTBuild

    engines = Engines(task, request, target)
    build = TensorRTBuild(
        model,
        request,
        timing_cache=Path(task["timing_cache"]) if task["timing_cache"] else None,
        cache_folder=Path(task["cache_folder"]),
        progress=_throttled(events),
    )
    report = build.run(target, engines.find)
    _report(folder, report if report.cached else engines.keep(report))


class Engines:
    """The engine cache, for one model and request."""

    def __init__(self, task: dict[str, Any], request: BuildRequest, target: Path) -> None:
        self._cache = EngineCache(Path(task["cache_folder"]) / "engines")
        self._used: bool = task["use_cache"]
        self._model: dict[str, str] = task["sha256"]
        self._request, self._target = request, target

    def find(self, version: str, gpu: Gpu | None) -> BuildReport | None:
        """The report of this very engine, which is put in place, if it was built before."""
        if not self._used:
            return None
        key = engine_key(self._model, self._request, version, gpu)
        text = self._cache.find(key, self._target)
        if text is None:
            return None
        try:
            return replace(BuildReport.from_json(json.loads(text)), cached=True)
        except (ValueError, LookupError, TypeError):  # another version's, or by another hand
            self._cache.drop(key, self._target)
            return None

    def keep(self, report: BuildReport) -> BuildReport:
        """Remember a new engine; a cache that cannot be written is worth a note, no more."""
        if self._used:
            key = engine_key(self._model, self._request, report.version, report.gpu)
            try:
                self._cache.add(key, self._target, json.dumps(report.to_json()))
            except OSError as error:
                reason = f"{self._cache.folder}: the engine was not cached ({error.strerror})"
                return replace(report, notes=(*report.notes, reason))
        return report


def _report(folder: Path, report: BuildReport) -> None:
    (folder / REPORT).write_text(json.dumps(report.to_json()))


def _throttled(events: IO[str]) -> Any:
    last = 0.0

    def progress(doing: str, share: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN or share >= 1:
            last = now
            _tell(events, doing=doing, share=share)

    return progress


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
