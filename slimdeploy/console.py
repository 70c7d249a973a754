"""Where things are written: results on stdout, progress and logs on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from slimdeploy.errors import InputError

stderr = Console(stderr=True)

arguments: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())
"""The words of the command being run: provenance records them."""


def note(message: str) -> None:
    """One line about what is being done, for a person, on stderr; nothing ends for want of it."""
    try:
        stderr.print(message, highlight=False, markup=False, soft_wrap=True)
    except OSError:
        _silence(sys.stderr)


def give(text: str) -> None:
    """A result, on stdout.

    Raises:
        InputError: if it cannot be written there.
        BrokenPipeError: if nobody reads it.
    """
    try:
        print(text, end="", flush=True)
    except OSError as error:
        _silence(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise InputError(
            f"stdout: cannot be written ({error.strerror}); make room there or send it elsewhere"
        ) from error


def _silence(stream: TextIO) -> None:
    """What is left in its buffer would be tried again, and fail again, when the program ends."""
    handle = os.open(os.devnull, os.O_WRONLY)
    os.dup2(handle, stream.fileno())
    os.close(handle)


SECONDS_BETWEEN_LINES = 20.0
"""Where there is no terminal to draw a bar on."""


class Bar(Progress):
    """A progress bar; where stderr is no terminal, a line every now and then in its place."""

    lines = True
    _told_at = 0.0

    def start(self) -> None:
        super().start()
        self._told_at = monotonic()

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._tell(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        if not (self.disable and self.lines) or monotonic() - self._told_at < SECONDS_BETWEEN_LINES:
            return
        self._told_at = monotonic()
        task = next(task for task in self.tasks if task.id == task_id)
        whole = "" if task.total is None else f" of {task.total:.0f}"
        note(f"{task.description}: {task.completed:.0f}{whole}")


def progress_bar() -> Bar:
    """A progress bar on stderr; where that is no terminal, a line every `SECONDS_BETWEEN_LINES`."""
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )


@contextmanager
def told_steps(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of `total` steps; each is told with a line, which stays where there is no bar."""
    with progress_bar() as progress:
        progress.lines = False
        bar = progress.add_task(what, total=total)

        def tell(line: str) -> None:
            progress.advance(bar)
            note(line)

        yield tell
