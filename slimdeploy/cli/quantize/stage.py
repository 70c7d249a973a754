"""What `slimdeploy quantize` is asked to do, and what follows from it and the model's file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from slimdeploy.cli.common import check_suffix, check_weights_safe, load_onnx
from slimdeploy.cli.image_size import channels_first, taken_size
from slimdeploy.cli.preprocessing import Pixels
from slimdeploy.cli.quantize.flags import Gates
from slimdeploy.errors import InputError
from slimdeploy.files import check_writable
from slimdeploy.manifest import Manifest, manifest_path, verify_manifest
from slimdeploy.precision.calibration import ArrayCalibration, Calibration, open_calibration
from slimdeploy.precision.options import PrecisionOptions
from slimdeploy.precision.quantize import RangeRequest
from slimdeploy.preprocessing import Preprocessing

_NOISE = 4


@dataclass(frozen=True)
class Stage:
    """The flags of `quantize`; see there."""

    model: Path
    options: PrecisionOptions
    keep_overflows: bool
    calibration: Path | None
    ranges_path: Path | None
    request: RangeRequest
    images: int
    seed: int
    split: str | None
    pixels: Pixels
    gates: Gates
    threads: int | None
    output: Path
    output_ranges: Path

    def check(self) -> None:
        """Refuse what cannot work, before any work.

        Raises:
            InputError: naming the flag, or the file that could not or should not be written.
        """
        self.pixels.check()
        quantised = self.options.quantised
        check_suffix("--output", self.output, ".onnx")
        if self.calibration is not None and self.ranges_path is not None:
            raise InputError("--calibration and --ranges: give one of them")
        if quantised and self.calibration is None and self.ranges_path is None:
            raise InputError(
                f"--precision {self.options.precision}: give --calibration (a folder or an .npz "
                "file of representative images) or --ranges"
            )
        if not quantised and self.ranges_path is not None:
            raise InputError(f"--ranges goes with int8 and fp8, not {self.options.precision}")
        if self.gates.data_split is not None and self.gates.data_dir is None:
            raise InputError("--data-split: give the labelled images with --data-dir")
        if self.gates.max_top1_drop is not None and self.gates.data_dir is None:
            raise InputError("--max-top1-drop: give labelled images with --data-dir")
        if quantised and self.gates.max_logit_error is not None and self.calibration is None:
            raise InputError("--max-logit-error: is judged on calibration images, not on --ranges")
        read = [self.model, manifest_path(self.model), self.calibration, self.ranges_path]
        targets = [self.output, manifest_path(self.output)]
        targets += [self.output_ranges] if quantised and self.ranges_path is None else []
        for index, target in enumerate(targets):
            check_writable(target, *read, *targets[:index])
            check_weights_safe(target, self.model)

    @cached_property
    def source(self) -> onnx.ModelProto:
        """The float32 model."""
        return load_onnx(self.model)

    @cached_property
    def manifest(self) -> Manifest | None:
        """The model's own record, if there is one."""
        return verify_manifest(self.model) if manifest_path(self.model).is_file() else None

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Of one image, as the model takes it.

        Raises:
            InputError: if the model does not take images of one size.
        """
        return taken_size(self.source, self.model)

    @cached_property
    def preprocessing(self) -> Preprocessing | None:
        """As the flags say, else as the manifest does."""
        recorded = self.manifest.preprocessing if self.manifest else None
        return self.pixels.over(recorded, channels_first(self.input_size), self.model)

    @cached_property
    def calibrating(self) -> Calibration:
        """The representative images; seeded noise if there are none."""
        if self.calibration is not None:
            return open_calibration(
                self.calibration,
                self.input_size,
                self.preprocessing,
                images=self.images,
                seed=self.seed,
                split=self.split,
            )
        noise = np.random.default_rng(self.seed).standard_normal((_NOISE, *self.input_size))
        return ArrayCalibration(noise.astype(np.float32), "seeded noise")
