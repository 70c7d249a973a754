"""Preprocessing that the user states, for a file that does not record its own."""

# Annotations are objects here: cyclopts resolves inherited names in the module of the heir.
from dataclasses import dataclass
from pathlib import Path

from slimdeploy.console import note
from slimdeploy.errors import InputError
from slimdeploy.preprocessing import Interpolation, Preprocessing

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Pixels:
    """How images become the model's input, for a file whose manifest records none.

    Attributes:
        mean: what its images are normalised by, as 0.485 0.456 0.406 (default: as its manifest
            says); with --std.
        std: likewise, as 0.229 0.224 0.225.
        interpolation: how its images are resized; with --mean and --std (default: bicubic).
        crop_pct: the share of the resized image's shorter edge that the central crop keeps;
            likewise (default: 1).
    """

    mean: Triple | None = None
    std: Triple | None = None
    interpolation: Interpolation | None = None
    crop_pct: float | None = None

    def check(self) -> None:
        """Refuse half of a statement.

        Raises:
            InputError: naming the flag.
        """
        if (self.mean is None) != (self.std is None):
            raise InputError("--mean and --std: give both, or neither")
        if self.mean is None:
            given = {"interpolation": self.interpolation, "crop-pct": self.crop_pct}
            for name, value in given.items():
                if value is not None:
                    raise InputError(f"--{name}: goes with --mean and --std")

    def over(
        self, recorded: Preprocessing | None, size: tuple[int, int, int], path: Path
    ) -> Preprocessing | None:
        """What the flags say, else what the manifest of `path` does; tells where they differ.

        Raises:
            InputError: as `stated`.
        """
        given = self.stated(size)
        if given is not None and recorded is not None and given != recorded:
            note(f"{path}: its manifest records other preprocessing than the flags, which hold")
        return given or recorded

    def stated(self, size: tuple[int, int, int]) -> Preprocessing | None:
        """What the flags say; None if they say nothing.

        Args:
            size: of the model's images: channels, height, width.

        Raises:
            InputError: if only part of it is given, or a value makes no sense.
        """
        self.check()
        if self.mean is None:
            return None
        crop = 1.0 if self.crop_pct is None else self.crop_pct
        fields = {
            "input_size": size,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation or "bicubic",
            "crop_pct": crop,
        }
        return Preprocessing.parse(fields, "--mean, --std, --interpolation, --crop-pct")
