"""Errors that a user sees as one clear line, each with the exit code it ends the program with.

0 success, 1 a check failed (parity, accuracy, speed), 2 usage or bad input, 3 something this
machine lacks. Anything else that is raised is a bug in slimdeploy and keeps its traceback, but for
what a disk refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SlimdeployError(Exception):
    """One line that names the file, the field and the remedy."""

    exit_code = 2


class GateError(SlimdeployError):
    """A check was made and failed."""

    exit_code = 1


class InputError(SlimdeployError):
    """What the user gave cannot be used."""

    exit_code = 2


class MissingError(SlimdeployError):
    """This machine lacks a package, a device or a driver."""

    exit_code = 3


class GraphError(InputError):
    """The graph holds something that a pass cannot handle: which node, where and why."""


@contextmanager
def requires(extra: str) -> Iterator[None]:
    """Turn a failed import in the body into a `MissingError` that names the extra to install.

    Example:
        >>> with requires("cpu"):
        ...     import onnxruntime
    """
    try:
        yield
    except ImportError as error:
        name = error.name or str(error)
        remedy = f"pip install 'slimdeploy[{extra}]'"
        raise MissingError(f"{name} is not installed: {remedy}") from error


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first line of a third party's message, short enough for a terminal."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:limit]
