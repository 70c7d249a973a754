"""The flags of `quantize` that can stop it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slimdeploy.cli.numbers import Limit


@dataclass(frozen=True)
class Gates:
    """What the quantised file must still do; if it does not, nothing is written.

    Attributes:
        data_dir: labelled images for --max-top1-drop.
        data_split: of these (test if there is one).
        max_top1_drop: fail (exit 1) if top-1 is more points below the float32 file's, as 0.5.
        max_logit_error: fail (exit 1) if an output differs by more of the outputs' scale, as 0.05,
            on the calibration images.
    """

    data_dir: Path | None = None
    data_split: str | None = None
    max_top1_drop: Limit = None
    max_logit_error: Limit = None
