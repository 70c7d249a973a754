"""A sweep over slim models of a timm model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from slimdeploy.cli.export.from_timm import TorchExport, export_timm
from slimdeploy.cli.slim.dynamic import dynamic, dynamic_request
from slimdeploy.cli.slim.from_timm import Slimming, TimmModel, draw_images, slimmed_schedule, static
from slimdeploy.cli.sweep.points import Point, SharedFlags
from slimdeploy.cli.sweep.sources import VERIFIED_IMAGES, Made, export_stage
from slimdeploy.cli.verify.against_timm import torch_parity
from slimdeploy.dynamic import per_image
from slimdeploy.errors import InputError, requires
from slimdeploy.files import sha256_file
from slimdeploy.graph.options import GraphOptions
from slimdeploy.measure.parity import DEFAULT_TOLERANCE
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule, ModelGeometry
from slimdeploy.slim.choices import DEFAULT_IMPACT, SEARCH_IMAGES, ImpactName


@dataclass(frozen=True)
class TimmSource:
    """A timm model and its weights; see `Source`."""

    name: str
    checkpoint: Path | None
    img_size: int | None
    shared: SharedFlags

    @cached_property
    def _opened(self) -> tuple[ModelGeometry, Preprocessing]:
        with requires("train"):
            from slimdeploy.slim.timm_models import load_geometry
        return load_geometry(self.name, self.checkpoint, None, self._kwargs)

    @property
    def _kwargs(self) -> dict[str, Any]:
        return {} if self.img_size is None else {"img_size": self.img_size}

    @property
    def geometry(self) -> ModelGeometry:
        return self._opened[0]

    @property
    def preprocessing(self) -> Preprocessing:
        return self._opened[1]

    @property
    def inputs(self) -> list[Path]:
        return [] if self.checkpoint is None else [self.checkpoint]

    @property
    def batch(self) -> int | None:
        return None

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "source": "timm",
            "model": self.name,
            # Whose weights a model without a checkpoint has depends on timm.
            "weights": f"timm {version('timm')}"
            if self.checkpoint is None
            else sha256_file(self.checkpoint),
            "img_size": self.img_size,
        }

    def check_point(self, point: Point) -> None:
        self._way(point)

    def dense(self, folder: Path) -> Path:
        """Exported as the slim ones are."""
        target = folder / "dense.onnx"
        export_timm(export_stage(None, GraphOptions()), self._export(self.name), target)
        return target

    def make(self, point: Point, folder: Path) -> Made:
        schedule_path, slim = folder / "sched.json", folder / "slim.onnx"
        weights = folder / "slim.safetensors"
        schedule = self._search(point, schedule_path, weights)
        export_timm(export_stage(schedule_path, GraphOptions()), self._export(None), slim)
        parity = torch_parity(
            slim,
            schedule_path,
            data_dir=self.shared.data_dir,
            checkpoint=None,
            split=self.shared.split,
            images=VERIFIED_IMAGES,
            seed=0,
            tolerance=DEFAULT_TOLERANCE,
        )
        parity.require(f"{slim}: against the slim torch model")
        files = {"onnx": slim, "schedule": schedule_path}
        if schedule.slim_checkpoint is not None:
            files["weights"] = weights
        return Made(slim, schedule, parity.relative, files)

    def _search(self, point: Point, path: Path, weights: Path) -> KeepSchedule:
        c = self.shared
        sample = draw_images(c.data_dir, c.split, c.images, point.seed)
        source = TimmModel(self.name, self.checkpoint, self._kwargs, sample, path, weights)
        return slimmed_schedule(source, self._way(point))

    def _way(self, point: Point) -> Slimming:
        with requires("train"):
            from slimdeploy.forward.ridge import ridge_options
            from slimdeploy.slim.pipeline import SlimRequest

        c, scorer = self.shared, per_image(point.impact)
        request = SlimRequest(
            mac_reduction=point.wanted,
            shape=c.shape,
            multiple_of=c.multiple_of,
            impact=DEFAULT_IMPACT if scorer else _torch_impact(point.impact),
            reconstruct=c.reconstruct,
            seed=point.seed,
            search_images=SEARCH_IMAGES if scorer else c.search_images,
            refit=ridge_options(c.ridge, scorer is not None),
        )
        if scorer is None:
            return static(request)
        return dynamic(dynamic_request(scorer, request, None, None), point.seed)

    def _export(self, model: str | None) -> TorchExport:
        """The dense model's export, or, without a name, that of what a schedule names."""
        given = (self.checkpoint, self.img_size) if model else (None, None)
        return TorchExport(
            model=model,
            checkpoint=given[0],
            exporter="dynamo",
            opset=20,
            static_batch=False,
            fused_attention=False,
            img_size=given[1],
        )


def _torch_impact(impact: str) -> ImpactName:
    known: tuple[ImpactName, ...] = get_args(ImpactName)
    for name in known:
        if name == impact:
            return name
    raise InputError(f"--impact {impact}: not one of {', '.join(known)}")
