"""What a pass is, and the runner that says which one failed after which."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph.work import Work


class Pass(ABC):
    """One rewrite of the graph, made in place.

    `requires` and `ensures` state what holds before and after; they raise `GraphError` where it
    does not. Each pass leaves a valid graph that computes what it computed before, except the
    one that applies a schedule.
    """

    @property
    def name(self) -> str:
        """How messages call it."""
        return type(self).__name__

    def requires(self, work: Work) -> None:  # noqa: B027 (most passes require nothing)
        """Check the precondition."""

    @abstractmethod
    def call(self, work: Work) -> None:
        """Rewrite `work`."""

    def ensures(self, work: Work) -> None:  # noqa: B027 (most passes ensure nothing checkable)
        """Check the postcondition."""


def run(passes: Sequence[Pass], work: Work) -> None:
    """Run `passes` in order; after each, dead nodes are dropped and the facts inferred anew.

    Raises:
        GraphError: as the pass did, with its name and those of the passes that had succeeded.
        InputError: as the pass did: what the user gave is at fault, not the pass.
    """
    done: list[str] = []
    for item in passes:
        try:
            item.requires(work)
            item.call(work)
            work.refresh()
            item.ensures(work)
        except GraphError as error:
            after = f" after {', '.join(done)}" if done else ""
            raise GraphError(f"{error} [{item.name}{after}]") from error
        except InputError:
            raise
        done.append(item.name)
