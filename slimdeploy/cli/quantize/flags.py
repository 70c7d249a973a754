"""The flags of `quantize` that can stop it, and those that would do nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy.cli.numbers import Limit
from slimdeploy.errors import InputError
from slimdeploy.precision.options import Precision, Rest
from slimdeploy.precision.thresholds import Method

if TYPE_CHECKING:
    from slimdeploy.precision.quantize import RangeRequest


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


@dataclass(frozen=True)
class Drawn:
    """Which images of a calibration folder are taken; None where the user says nothing."""

    images: int | None
    seed: int | None
    split: str | None

    def refuse_ignored(self, calibration: Path | None, ranges: Path | None) -> None:
        """Stop at flags that would be read by nobody.

        Raises:
            InputError: naming the first.
        """
        for flag in fields(self):
            if getattr(self, flag.name) is None:
                continue
            if calibration is not None and calibration.suffix == ".npz":
                raise InputError(
                    f"--{flag.name}: goes with a folder of images; {calibration} is taken whole"
                )
            # Where there are no images at all the seed is the noise's.
            if calibration is None and (flag.name != "seed" or ranges is not None):
                raise InputError(f"--{flag.name}: goes with a folder of images for --calibration")


def refuse_kept(keep: tuple[str, ...], low: Rest) -> None:
    """Stop at --keep-float32 where nothing is cast, or nothing looked at.

    Raises:
        InputError: saying which.
    """
    if keep and low == "fp32":
        raise InputError(
            "--keep-float32: with --rest fp32 nothing is cast; --leave names products that are "
            "not quantised"
        )
    if "overflow" in keep and low != "fp16":
        raise InputError(
            f"--keep-float32 overflow: goes with fp16; {low} holds whatever float32 does"
        )


def check_method(what: str, method: Method, precision: Precision) -> None:
    """Refuse a way of clipping that weighs what the precision does not do.

    Raises:
        InputError: beginning with `what`, which chose it.
    """
    if method == "entropy" and precision == "fp8":
        raise InputError(
            f"{what}: entropy weighs the even steps of int8, which fp8 has not: use minmax"
        )


@dataclass(frozen=True)
class Taken:
    """How ranges are taken and where they go; None where the user says nothing."""

    method: Method | None
    percentile: float | None
    smooth: float | None
    output_ranges: Path | None

    def refuse_ignored(
        self, precision: Precision, ranges: Path | None, **of_products: object
    ) -> None:
        """Stop at flags that would be read by nobody.

        Args:
            ranges: a file of ranges that were taken before.
            of_products: flags that say what products are quantised.

        Raises:
            InputError: naming the first.
        """
        mine = {x.name: getattr(self, x.name) for x in fields(self)}
        for name, value in {**mine, **of_products}.items():
            flag = f"--{name.replace('_', '-')}"
            if value is not None and precision in ("fp16", "bf16"):
                raise InputError(f"{flag}: goes with int8 and fp8, not {precision}")
            if value is not None and name in mine and ranges is not None:
                raise InputError(f"{flag}: does not go with --ranges, which were taken before")
        if self.percentile is not None and self.method != "percentile":
            raise InputError("--percentile: goes with --method percentile")

    def request(self, precision: Precision) -> RangeRequest:
        """With the defaults.

        Raises:
            InputError: for a smoothing or percentile out of range, or a method not for `precision`.
        """
        from slimdeploy.precision.quantize import RangeRequest

        default = 0.8 if precision == "int8" else 0.0
        smooth = default if self.smooth is None else self.smooth
        if not 0 <= smooth <= 1:
            raise InputError(f"--smooth {smooth}: must be between 0 and 1")
        share = 99.999 if self.percentile is None else self.percentile
        if not 0 < share <= 100:
            raise InputError(f"--percentile {share}: must be above 0 and at most 100")
        if self.method is not None:
            check_method("--method", self.method, precision)
        return RangeRequest(self.method or "minmax", share, smooth)
