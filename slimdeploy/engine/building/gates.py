"""What an engine must show before it is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slimdeploy.engine.building.report import BuildReport
from slimdeploy.engine.lint import Finding, tells_kernels
from slimdeploy.engine.tokens import check_tokens
from slimdeploy.errors import GateError


def check_schedule(
    model: Path, counts: Sequence[int], expected: Sequence[int] | None, by: Path | None, asked: bool
) -> tuple[str, ...]:
    """Compare the tokens that were read back with those expected; notes on what could not be.

    Args:
        counts: tokens of each block; [] if no block was found, in the engine or in the network.
        by: the file that says what is expected.
        asked: whether the user asked for the comparison: then it must be made.

    Raises:
        InputError, GateError: as `check_tokens`; or if there is nothing to compare.
    """
    if expected is None:
        return ()
    if counts:
        check_tokens(str(model), counts, expected, str(by))
        return ()
    found = "no attention was found in the network or its engine"
    if asked:
        raise GateError(
            f"{model}: {found}, so its tokens cannot be compared with {by}; nothing was written: "
            "give the model that was exported with this schedule, or leave out --keep-schedule"
        )
    return (f"{found}: its tokens were not compared with {by}",)


def require_clean(output: Path, report: BuildReport, findings: Sequence[Finding]) -> None:
    """Refuse an engine with findings, and one whose kernels the linters could not see.

    Raises:
        GateError: naming the first finding, or what to do without them.
    """
    if not tells_kernels(report.layers):
        raise GateError(
            f"{output}: the build told no kernels, so the linters had nothing to look at; nothing "
            "was written, as --strict asks: leave it out, or build with --backend tensorrt or "
            "tensorrt-rtx, which tell theirs"
        )
    if findings:
        raise GateError(
            f"{output}: {findings[0].message} (and {len(findings) - 1} more findings); "
            "nothing was written, as --strict asks"
        )
