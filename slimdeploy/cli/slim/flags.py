"""The flags that `slim` and `sweep` have for ONNX files only."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from slimdeploy.cli.preprocessing import Pixels
from slimdeploy.errors import InputError
from slimdeploy.graph.options import Select
from slimdeploy.slim.choices import Reconstruct, Strength

NO_POSITIONS = "--dynamic, which searches no positions"


@dataclass(frozen=True)
class FileFlags(Pixels):
    """With --onnx only.

    Attributes:
        select: how a selection of tokens is written, as in `export`.
        optimize: rewrite the graph to compute the same with less work.
        outputs: outputs of the file to keep, where it has more than the one that is wanted.
        pool_kept: let a head that pools over all tokens pool over the kept ones.
    """

    select: Select = "gather"
    optimize: bool = False
    outputs: tuple[str, ...] = ()
    pool_kept: bool = False

    def refuse(self) -> None:
        """Stop if any of them was given.

        Raises:
            InputError: naming the first.
        """
        given = {x.name: getattr(self, x.name) for x in fields(self)}
        default = {x.name: x.default for x in fields(self)}
        refuse("--model", **{n: v for n, v in given.items() if v != default[n]})


@dataclass(frozen=True)
class SlimFlags(FileFlags):
    """What `slim` has besides.

    Attributes:
        output_schedule: the keep schedule to write (default: beside the slim file).
    """

    output_schedule: Path | None = None


def refuse_ridge(ridge: Strength | None, reconstruct: Reconstruct) -> None:
    """Stop at a ridge with which none of the resulting weights is solved for.

    That is all but refit, though --shape auto tries its shapes with one: of `gradient` with the
    default.

    Raises:
        InputError: saying so.
    """
    if ridge is not None and reconstruct != "refit":
        raise InputError(f"--ridge: goes with --reconstruct refit, not {reconstruct}")


def refuse(source: str, **given: object) -> None:
    """Stop if a flag was given that does not go with `source`.

    Raises:
        InputError: naming the first.
    """
    for name, value in given.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')}: does not go with {source}")
