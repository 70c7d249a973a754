"""TensorRT's log and its progress, caught from the callbacks it makes while it builds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of the whole that is done, 0 to 1."""


def make_logger(trt: Any) -> Any:
    """A logger that keeps every line: `.lines` of all severities, `.errors` of the worst two."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)

    return Logger()


def last_error(logger: Any) -> str:
    """The first line of what such a logger was last told of as an error."""
    errors = logger.errors or ["no reason given"]
    return str(errors[-1]).strip().splitlines()[0][:200]


def make_monitor(trt: Any, progress: Progress) -> Any:
    """A progress monitor that turns nested phases into one share of the whole."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases = Phases()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases.start(name, parent, steps)
            progress(*self.phases.state())

        def step_complete(self, name: str, step: int) -> bool:
            self.phases.step(name, step)
            progress(*self.phases.state())
            return True  # False would cancel the build

        def phase_finish(self, name: str) -> None:
            self.phases.finish(name)
            progress(*self.phases.state())

    return Monitor()


class Phases:
    """Phases within phases: a phase counts for one step of its parent."""

    def __init__(self) -> None:
        self._parents: dict[str, str | None] = {}
        self._steps: dict[str, tuple[int, int]] = {}
        self._furthest = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Open a phase of `steps` steps within `parent`."""
        self._parents[name] = parent
        self._steps[name] = (0, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        """Step number `step`, from 0, is done."""
        _, total = self._steps.get(name, (0, 1))
        self._steps[name] = (min(step + 1, total), total)

    def finish(self, name: str) -> None:
        """Close a phase."""
        if self._parents.pop(name, None) is None:
            self._furthest = 1.0
        self._steps.pop(name, None)

    def state(self) -> tuple[str, float]:
        """The innermost phase, and the share done; it never falls."""
        innermost = next(reversed(self._steps), "done")
        share, name = 0.0, innermost if self._steps else None
        while name in self._steps:
            done, total = self._steps[name]
            share = min((done + share) / total, 1.0)
            name = self._parents.get(name)
        self._furthest = max(self._furthest, share)
        return innermost, self._furthest
