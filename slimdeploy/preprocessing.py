"""From a photograph to the array a model was trained on: the project's one preprocessing.

Evaluation, calibration, verification and the pictures all go through `Preprocessing.apply`, and
every artifact records it, so that two variants of a model are never compared on different pixels.
The arithmetic is timm's evaluation transform on PIL images, without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from slimdeploy.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos"]

# Pillow squeezes these to 8 bits by clipping: nearly every pixel of a 16-bit image becomes white.
_DEEP_MODES = ("I", "F")


_LARGEST = 2.0
"""No mean or deviation of pixels from 0 to 1 comes near it."""


def first_problem(error: ValidationError) -> str:
    """`field[2].name: what is wrong` for the first of pydantic's complaints, on one line."""
    problem = error.errors(include_url=False)[0]
    place = ""
    for part in problem["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place.lstrip('.')}: {message}" if place else message


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any 8-bit kind as RGB.

    Raises:
        InputError: for 16-bit and floating-point images, which need a stated scaling first.
    """
    if image.mode.split(";")[0] in _DEEP_MODES:
        raise InputError(f"image mode {image.mode} has more than 8 bits: convert it to 8 first")
    return image.convert("RGB")


class Preprocessing(BaseModel):
    """What is done to an image before the model sees it. Nothing is assumed: all must be given.

    Attributes:
        input_size: channels (always 3), height and width of the model's input, in pixels.
        mean: subtracted from each channel, on a scale of 0 to 1.
        std: each channel is then divided by it, on the same scale.
        interpolation: how the image is resized.
        crop_pct: the share of the resized image's shorter edge that the central crop keeps.
        crop_mode: only "center": keep the aspect ratio and cut off what sticks out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input_size: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    crop_pct: float
    crop_mode: str = "center"

    @classmethod
    def parse(cls, record: Mapping[str, object], where: str = "preprocessing") -> Self:
        """A checked `Preprocessing` from a plain record; `where` names it in errors.

        Raises:
            InputError: naming the field at fault.
        """
        try:
            return cls.model_validate(dict(record))
        except ValidationError as error:
            raise InputError(f"{where}: {first_problem(error)}") from error

    @classmethod
    def from_timm(cls, config: Mapping[str, object]) -> Self:
        """From what `timm.data.resolve_model_data_config` returns; further keys are ignored.

        Raises:
            InputError: if the model needs something not supported here.
        """
        known = {name: config[name] for name in cls.model_fields if name in config}
        return cls.parse(known, "the model's preprocessing")

    @field_validator("input_size")
    @classmethod
    def _three_channels(cls, size: tuple[int, int, int]) -> tuple[int, int, int]:
        if size[0] != 3 or min(size) < 1:
            raise ValueError(f"{list(size)} is not 3 channels, height, width in pixels")
        return size

    @field_validator("mean", "std")
    @classmethod
    def _of_unit_scale(cls, values: tuple[float, float, float]) -> tuple[float, float, float]:
        # ImageNet's mean on the other scale is 123.675 116.28 103.53: all images would look alike.
        if max(values) > _LARGEST:
            raise ValueError(f"{list(values)} is for pixels from 0 to 255: divide it by 255")
        return values

    @field_validator("std")
    @classmethod
    def _divisible(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError(f"{list(std)} must be above 0: pixels are divided by it")
        return std

    @field_validator("crop_pct")
    @classmethod
    def _share(cls, crop_pct: float) -> float:
        if not 0 < crop_pct <= 1:
            raise ValueError(f"{crop_pct} is not above 0 and at most 1")
        return crop_pct

    @field_validator("crop_mode")
    @classmethod
    def _centre(cls, crop_mode: str) -> str:
        if crop_mode != "center":
            raise ValueError(f"'{crop_mode}' is not supported; only 'center' is")
        return crop_mode

    def crop(self, image: Image.Image) -> Image.Image:
        """The RGB image that the model sees: resized and cut to height x width.

        Raises:
            InputError: for 16-bit and floating-point images, which need a stated scaling first.
        """
        from PIL import Image as Pillow

        width, height = self._resized(image.width, image.height)
        method = Pillow.Resampling[self.interpolation.upper()]
        resized = to_rgb(image).resize((width, height), method)
        # Python's round, to even, is part of what timm does.
        left = round((width - self.input_size[2]) / 2)
        top = round((height - self.input_size[1]) / 2)
        return resized.crop((left, top, left + self.input_size[2], top + self.input_size[1]))

    def apply(self, image: Image.Image) -> NDArray[np.float32]:
        """The model's input, float32 [3, height, width], for one image of any size and colour.

        Raises:
            InputError: as `crop`.
        """
        pixels = np.asarray(self.crop(image), dtype=np.float32) / np.float32(255)
        scaled = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that keep the aspect ratio and just cover the crop over `crop_pct`."""
        target_height, target_width = (math.floor(x / self.crop_pct) for x in self.input_size[1:])
        if target_height == target_width:  # here the longer edge is rounded down
            short, long = sorted((width, height))
            longer = int(target_width * long / short)
            return (target_width, longer) if width <= height else (longer, target_width)
        ratio = min(height / target_height, width / target_width)
        return round(width / ratio), round(height / ratio)
