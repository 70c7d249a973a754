"""The quantised file against the float32 one: outputs on calibration images, accuracy on labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.cli.common import judged_outputs, open_images
from slimdeploy.cli.evaluate import measure
from slimdeploy.cli.quantize.stage import Stage
from slimdeploy.errors import GateError, InputError
from slimdeploy.measure.accuracy import Accuracy, AccuracyComparison, compare_accuracy
from slimdeploy.measure.parity import Parity, compare_all
from slimdeploy.measure.stats import points_lost

_COMPARED = 64


@dataclass(frozen=True)
class Checks:
    """What was found: the outputs' difference, and where there are labels, the accuracy.

    `fair` is False where there was only noise to compare on, beyond the ranges of what it is for.
    """

    parity: Parity
    images: str
    runtime: str
    fair: bool
    float32: Accuracy | None = None
    quantised: Accuracy | None = None
    compared: AccuracyComparison | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        accuracy = None
        if self.float32 and self.quantised and self.compared:
            accuracy = {
                "float32": self.float32.to_json(),
                "quantised": self.quantised.to_json(),
                "comparison": self.compared.to_json(),
            }
        parity = {**self.parity.to_json(), "images": self.images, "runtime": self.runtime}
        return {"parity": parity if self.fair else None, "accuracy": accuracy}

    def sentences(self) -> list[str]:
        """For a person."""
        unfair = "outputs not compared: ranges are not for noise; compare on --data-dir"
        lines = [self._difference() if self.fair else unfair]
        if self.float32 and self.quantised and self.compared:
            lines.append(
                f"top-1 on {self.compared.n} images: {self.quantised.top1:.2%}, float32 "
                f"{self.float32.top1:.2%} ({100 * self.compared.difference:+.2f} points)"
            )
        return lines

    def _difference(self) -> str:
        found = self.parity
        return (
            f"outputs differ from float32 by {found.relative:.2%} of their scale at most, top-1 "
            f"agrees on {found.top1_agreement:.1%} of {found.rows} {self.images} images"
        )


def check_output(stage: Stage, written: Path) -> Checks:
    """Compare the file just written with the float32 one.

    Raises:
        GateError: if it exceeds what --max-logit-error or --max-top1-drop allow.
    """
    parity, runtime = _parity(stage, written)
    images = "calibration" if stage.calibration else "seeded noise"
    if not parity.finite:
        raise GateError(f"{stage.output}: NaN or infinity in the outputs on {images} images")
    allowed = stage.gates.max_logit_error
    if allowed is not None and parity.relative > allowed:
        raise GateError(
            f"{stage.output}: outputs differ by {parity.relative:.2%} of their scale from "
            f"{stage.model} on {parity.rows} {images} images, allowed {allowed:.2%}"
        )
    fair = stage.calibration is not None or not stage.options.quantised
    checks = Checks(parity, images, runtime, fair)
    return checks if stage.gates.data_dir is None else _accuracy(stage, written, checks)


def _parity(stage: Stage, written: Path) -> tuple[Parity, str]:
    from slimdeploy.engine import open_engine
    from slimdeploy.measure.feeding import infer_all

    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    with (
        open_engine(stage.model, threads=stage.threads) as first,
        open_engine(written, threads=stage.threads) as second,
    ):
        for batch in stage.calibrating.spread(_COMPARED).batches(16):
            for engine, outputs in zip((first, second), sides, strict=True):
                found = infer_all(engine, batch)
                outputs.append({name: found[name] for name in judged_outputs(engine)})
        runtime = second.describe().provider
    reference, other = (
        {name: np.concatenate([found[name] for found in outputs]) for name in outputs[0]}
        for outputs in sides
    )
    return compare_all(reference, other, tolerance=1.0), runtime


def _accuracy(stage: Stage, written: Path, checks: Checks) -> Checks:
    preprocessing = stage.preprocessing
    if stage.gates.data_dir is None or preprocessing is None:
        raise InputError(
            f"--data-dir: the manifest of {stage.model} records no preprocessing; give --mean and "
            "--std"
        )
    folder = open_images(stage.gates.data_dir, stage.gates.data_split, "test")
    before = measure(stage.model, folder, preprocessing, 32, stage.threads)
    after = measure(written, folder, preprocessing, 32, stage.threads)
    compared = compare_accuracy(before, after)
    drop, allowed = points_lost(compared.difference), stage.gates.max_top1_drop
    if allowed is not None and drop > allowed:
        raise GateError(
            f"{stage.output}: top-1 is {drop:.2f} points below {stage.model} on {compared.n} "
            f"images, allowed {allowed}"
        )
    return replace(checks, float32=before, quantised=after, compared=compared)
