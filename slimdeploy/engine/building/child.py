"""The other end of a build process: start it, follow it, and say how it ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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
    with noise.open("wb") as stderr, _started([*_WORKER, str(folder)], stderr) as process:
        failure = _follow(process, progress)
        status = process.wait()
    if failure is not None:
        raise failure
    if status < 0:
        raise killed(task["model"], -status)
    if status or not (folder / REPORT).is_file():  # a bug of ours: its traceback is worth seeing
        raise RuntimeError(f"the build process failed:\n{noise.read_text(errors='replace')}")
    return BuildReport.from_json(json.loads((folder / REPORT).read_text()))


@contextmanager
def _started(words: list[str], stderr: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """A process that has ended when the body has, however that ends."""
    with _interrupts_held() as release:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            release()
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextmanager
def _interrupts_held() -> Iterator[Callable[[], None]]:
    """Let a user's interruption wait for the yielded function, which restores things as they were.

    An interruption while a process is being started would leave one that nobody knows of.
    """
    waiting: list[int] = []
    usual = signal.getsignal(signal.SIGINT)
    # Only the main thread is interrupted, and may say what happens then.
    if not callable(usual) or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def release() -> None:
        signal.signal(signal.SIGINT, usual)
        if waiting:
            signal.raise_signal(waiting.pop())

    signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        yield release
    finally:
        signal.signal(signal.SIGINT, usual)


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
