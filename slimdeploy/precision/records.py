"""The parts of a ranges file."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """What is read strictly: no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelFile(Record):
    """The file whose tensors these are: its name, and a hash of it and of weights beside it."""

    name: str
    sha256: Sha256


class ImageSet(Record):
    """The images that were run: see `slimdeploy.precision.calibration.Described`."""

    source: str
    count: int = Field(ge=1)
    sha256: Sha256


class TensorRange(Record):
    """Of one tensor: the least and largest value seen, where to clip, and what that cuts off.

    Attributes:
        threshold: absolute values beyond it are clipped.
        clipped: the share of values that are.
    """

    lowest: float
    highest: float
    threshold: float = Field(ge=0)
    clipped: float = Field(ge=0, le=1)
