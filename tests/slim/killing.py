"""Commands that are killed (SIGKILL, no chance to tidy up) and given again until they finish."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from slimdeploy.cli import main

EVENTS = frozenset(("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"))
Prepare = Callable[[], None]


class Killed:
    """A command that writes into `folder` alone, and what it writes when it is left in peace.

    Attributes:
        files: name and content of what it writes.
        events: how often it touches files there.
        seconds: how long it takes.
    """

    def __init__(self, folder: Path, words: Sequence[object]) -> None:
        self.folder, self.words = folder, [str(word) for word in words]
        self.empty()
        begin, counter = time.monotonic(), mmap.mmap(-1, 8)  # shared with the child
        assert self._finishes(lambda: _watch(folder, counter, at=0))
        self.seconds = time.monotonic() - begin
        self.events = int.from_bytes(counter[:8], "little")
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def at_event(self, count: int) -> None:
        """Kill it before it touches a file for the `count`-th time, let the next run finish."""
        self.kill_at_event(count)
        self.finish(f"killed at event {count} of {self.events}")

    def kill_at_event(self, count: int) -> None:
        """Kill it before it touches a file for the `count`-th time."""
        self.empty()
        assert not self._finishes(lambda: _watch(self.folder, mmap.mmap(-1, 8), at=count))

    def finish(self, when: str = "killed") -> None:
        """Run it once more, to the end, and compare."""
        self.resume()
        self._check(when)

    def resume(self) -> None:
        """Run it once more, to the end."""
        assert self._finishes(lambda: None)

    def at_any_time(self, draw: random.Random, times: int = 4) -> None:
        """Kill it again and again, wherever it is, then let it finish."""
        self.empty()
        for _ in range(times):
            seconds = self.seconds * draw.uniform(0.1, 1.0)
            self._finishes(lambda after=seconds: _die_after(after))  # it may have been faster
        self.finish("killed at any time")

    def _check(self, when: str) -> None:
        for name, content in self.files.items():
            assert (self.folder / name).read_bytes() == content, f"{name} differs, {when}"
        left = {p.name for p in self.folder.iterdir()} - self.files.keys()
        assert not [name for name in left if name.endswith((".work", ".state"))], when

    def empty(self) -> None:
        """Remove everything it wrote."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _finishes(self, prepare: Prepare) -> bool:
        """Run it in a child of this process; False if it was killed."""
        child = os.fork()
        if child == 0:
            in_child(self.words, prepare)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return False
        assert os.WEXITSTATUS(status) == 0, f"slimdeploy {self.words[0]} failed"
        return True


def in_child(words: list[str], prepare: Prepare) -> None:
    """Run `slimdeploy WORDS` in this forked process and end it."""
    code = 99
    try:
        torch.set_num_threads(1)  # threads of the parent's pool are not there
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        prepare()
        main(words)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _watch(folder: Path, counter: mmap.mmap, at: int) -> None:
    """Count how often this process touches a file below `folder`; die before number `at`."""
    below = os.fspath(folder)

    def hook(event: str, words: tuple[object, ...]) -> None:
        if event in EVENTS and str(words[0]).startswith(below):
            count = int.from_bytes(counter[:8], "little") + 1
            counter[:8] = count.to_bytes(8, "little")
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _die_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()
