"""Where things are written: results on stdout, progress and logs on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
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


def progress_bar() -> Progress:
    """A progress bar on stderr; silent when stderr is not a terminal."""
    return Progress(
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
        bar = progress.add_task(what, total=total)

        def tell(line: str) -> None:
            progress.advance(bar)
            note(line)

        yield tell
