"""Preprocessing that the user states, for a file that does not record its own."""

# Annotations are objects here: cyclopts resolves inherited names in the module of the heir.
from dataclasses import dataclass

from slimdeploy.errors import InputError
from slimdeploy.preprocessing import Interpolation, Preprocessing

Triple = tuple[float, float, float]


def given_preprocessing(
    size: tuple[int, int, int],
    mean: Triple | None,
    std: Triple | None,
    interpolation: Interpolation,
    crop_pct: float,
) -> Preprocessing | None:
    """What the flags say; None if they say nothing.

    Args:
        size: of the model's images: channels, height, width.

    Raises:
        InputError: if only one of `mean` and `std` is given, or a value makes no sense.
    """
    if (mean is None) != (std is None):
        raise InputError("--mean and --std: give both, or neither")
    if mean is None:
        return None
    fields = {"input_size": size, "mean": mean, "std": std}
    shape = {"interpolation": interpolation, "crop_pct": crop_pct}
    return Preprocessing.parse({**fields, **shape}, "--mean, --std, --interpolation, --crop-pct")


@dataclass(frozen=True)
class Pixels:
    """How images become the model's input, for a file whose manifest records none.

    Attributes:
        mean: what its images are normalised by (default: as its manifest says); with --std.
        std: likewise.
        interpolation: how its images are resized.
        crop_pct: the share of the resized image's shorter edge that the central crop keeps.
    """

    mean: Triple | None = None
    std: Triple | None = None
    interpolation: Interpolation = "bicubic"
    crop_pct: float = 1.0

    def stated(self, size: tuple[int, int, int]) -> Preprocessing | None:
        """`given_preprocessing` of these flags."""
        return given_preprocessing(size, self.mean, self.std, self.interpolation, self.crop_pct)
