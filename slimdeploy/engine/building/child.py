"""The other end of a build process: start it, follow it, and say how it ended."""

from __future__ import annotations

import json
import os
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
# Not -m alone, which would take modules from the folder that the user happens to be in.
_WORKER = [sys.executable, "-P", "-m", "slimdeploy.engine.building.worker"]
_ENDINGS = (signal.SIGTERM, signal.SIGHUP)


def run_build(folder: Path, task: dict[str, Any], progress: Progress) -> BuildReport:
    """Run a task in a process of its own; the engine is in `folder` when this returns.

    Raises:
        SlimdeployError: the one that the process told of, or what its death means.
        OSError: if the process could not write.
    """
    (folder / TASK).write_text(json.dumps({**task, "parent": os.getpid()}))
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
def orderly_end() -> Iterator[None]:
    """Let a process that is told to end, in the body, end by `SystemExit`, as a shell tells of it.

    What the body has begun is then cleaned up. Handlers of one's own, and signals that are
    ignored, stay as they are.
    """
    numbers = [n for n in _ENDINGS if _in_main_thread() and signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


def _in_main_thread() -> bool:
    """Only the main thread is interrupted, and may say what happens then."""
    return threading.current_thread() is threading.main_thread()


def _environment() -> dict[str, str]:
    """In which the process finds this very package, wherever it lies."""
    folder = Path(__file__).resolve().parents[3]
    if folder.name in ("site-packages", "dist-packages"):  # found anyway, behind Python's own
        return dict(os.environ)
    paths = (str(folder), os.environ.get("PYTHONPATH"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@contextmanager
def _started(words: list[str], stderr: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """A process that has ended when the body has, however that ends."""
    with _interrupts_held() as release:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=stderr, text=True, env=_environment()
        )
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
    """Let interruptions wait for the yielded function, which restores things as they were.

    An interruption while a process is being started would leave one that nobody knows of.
    """
    waiting: list[int] = []
    found = {n: signal.getsignal(n) for n in (signal.SIGINT, *_ENDINGS) if _in_main_thread()}
    usual = {number: handler for number, handler in found.items() if callable(handler)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def release() -> None:
        restore()
        if waiting:
            signal.raise_signal(waiting.pop())

    for number in usual:
        signal.signal(number, lambda number, _: waiting.append(number))
    try:
        yield release
    finally:
        restore()


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
