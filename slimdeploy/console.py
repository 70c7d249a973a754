"""Where things are written: results on stdout, progress and logs on stderr."""

from __future__ import annotations

from contextvars import ContextVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

stderr = Console(stderr=True)

arguments: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())
"""The words of the command being run: provenance records them."""


def note(message: str) -> None:
    """One line about what is being done, for a person, on stderr."""
    stderr.print(message, highlight=False, markup=False, soft_wrap=True)


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
