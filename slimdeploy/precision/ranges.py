"""The ranges of a model's tensors, in a file that a person can read and that names its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, ValidationError

from slimdeploy import __version__
from slimdeploy.errors import InputError
from slimdeploy.files import read_bytes, write_text
from slimdeploy.graph.files.external import Array
from slimdeploy.graph.work import Work
from slimdeploy.measure.onnx_file import model_digest
from slimdeploy.precision.calibration import Calibration
from slimdeploy.precision.observe import Progress, observe
from slimdeploy.precision.records import ImageSet, ModelFile, Record, TensorRange
from slimdeploy.precision.thresholds import Histogram, Method, threshold
from slimdeploy.preprocessing import first_problem


class Ranges(Record):
    """See the module. Tensors go by their names in the ONNX file.

    Attributes:
        smooth: the exponent by which outliers were moved into weights before the ranges were
            taken; 0 where none were. `x.smoothed` is x after that.
        channels: of tensors that were smoothed: the largest absolute value of each channel (last
            axis) before.
    """

    format: Literal[1] = 1
    kind: Literal["ranges"] = "ranges"
    slimdeploy: str = __version__
    model: ModelFile
    method: Method
    percentile: float | None = None
    images: ImageSet
    smooth: float = Field(default=0.0, ge=0, le=1)
    channels: dict[str, list[float]] = Field(default_factory=dict)
    tensors: dict[str, TensorRange]

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file.

        Raises:
            InputError: if it is missing, truncated or not a ranges file; it names the field.
        """
        try:
            return cls.model_validate_json(read_bytes(path))
        except ValidationError as error:
            raise InputError(
                f"{path}: not a ranges file: {first_problem(error)}; collect the ranges anew with "
                "--calibration"
            ) from error

    def write(self, path: Path) -> None:
        """To a file, atomically."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    def require_for(self, model: Path, where: Path) -> None:
        """Refuse ranges of another model; `where` names their file.

        Raises:
            InputError: ranges change when tokens are dropped, so those of a dense model are not
                good enough for the slim one.
        """
        found = model_digest(model)
        if found != self.model.sha256:
            raise InputError(
                f"{where}: model.sha256: holds the ranges of another file ({self.model.name}, "
                f"{self.model.sha256[:12]}), not of {model.name} ({found[:12]}); collect them "
                "anew with --calibration"
            )

    @property
    def thresholds(self) -> dict[str, float]:
        """Where to clip, by tensor."""
        return {name: found.threshold for name, found in self.tensors.items()}


def histograms(
    work: Work,
    names: Sequence[str],
    images: Calibration,
    progress: Progress | None = None,
    threads: int | None = None,
) -> dict[str, Histogram]:
    """What values the tensors `names` take on the images.

    Raises:
        GateError: if one holds NaN or infinity.
    """
    found = {name: Histogram() for name in names}
    for name, array in observe(work, names, images, progress, threads):
        found[name].add(array)
    return found


def channel_maxima(
    work: Work,
    names: Sequence[str],
    images: Calibration,
    progress: Progress | None = None,
    threads: int | None = None,
) -> dict[str, list[float]]:
    """The largest absolute value in each channel (last axis) of the tensors `names`.

    Raises:
        GateError: if one holds NaN or infinity.
    """
    found: dict[str, Array] = {}
    for name, array in observe(work, names, images, progress, threads):
        largest = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0)
        found[name] = np.maximum(found.get(name, 0), largest)
    # Four digits are plenty to scale by, and readable.
    return {name: [float(f"{x:.4g}") for x in values] for name, values in found.items()}


def ranges_of(
    found: Mapping[str, Histogram],
    model: Path,
    images: Calibration,
    method: Method,
    percentile: float = 99.999,
    smooth: float = 0.0,
    channels: Mapping[str, list[float]] | None = None,
) -> Ranges:
    """The record of what was found, with thresholds by `method`."""
    tensors = {}
    for name, histogram in found.items():
        clip = threshold(histogram, method, percentile)
        tensors[name] = TensorRange(
            lowest=histogram.lowest,
            highest=histogram.highest,
            threshold=clip,
            clipped=histogram.share_beyond(clip),
        )
    return Ranges(
        model=ModelFile(name=model.name, sha256=model_digest(model)),
        method=method,
        percentile=percentile if method == "percentile" else None,
        images=ImageSet(**images.described.to_json()),
        smooth=smooth,
        channels=dict(channels or {}),
        tensors=tensors,
    )
