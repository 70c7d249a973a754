"""A sweep over slim models of a dense ONNX file, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from slimdeploy.cli.common import separated
from slimdeploy.cli.onnx_source import DenseFile, open_dense, require_droppable
from slimdeploy.cli.slim.flags import FileFlags
from slimdeploy.cli.slim.from_onnx import OnnxSlim, check_head, write_slim_file
from slimdeploy.cli.sweep.points import Point, SharedFlags
from slimdeploy.cli.sweep.sources import VERIFIED_IMAGES, Made, export_stage
from slimdeploy.cli.verify.against_dense import prove_file, require_proven
from slimdeploy.cli.verify.check import Check
from slimdeploy.dynamic import per_image
from slimdeploy.graph.options import GraphOptions
from slimdeploy.graph.shapes import runtime_inputs
from slimdeploy.measure.onnx_file import model_digest
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import ModelGeometry
from slimdeploy.slim.choices import DEFAULT_IMPACT, SEARCH_IMAGES


@dataclass(frozen=True)
class OnnxSource:
    """A user's dense ONNX file; see `Source`."""

    path: Path
    shared: SharedFlags
    flags: FileFlags = field(default_factory=FileFlags)

    @cached_property
    def _opened(self) -> DenseFile:
        dense = open_dense(self.path, separated(self.flags.outputs))
        require_droppable(dense)
        return dense

    @property
    def geometry(self) -> ModelGeometry:
        return self._opened.geometry

    @cached_property
    def preprocessing(self) -> Preprocessing:
        return self._slim(Point(DEFAULT_IMPACT, 0.5, 0)).preprocessing(self._opened)

    @property
    def inputs(self) -> list[Path]:
        return [self.path]

    @property
    def batch(self) -> int | None:
        dims = runtime_inputs(self._opened.model)[0].type.tensor_type.shape.dim
        return dims[0].dim_value or None

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "source": "onnx",
            "model": self.path.name,
            "weights": model_digest(self.path),
            "outputs": list(separated(self.flags.outputs)),
            "pool_kept": self.flags.pool_kept,
            "select": self.flags.select,
            "optimize": self.flags.optimize,
        }

    def check_point(self, point: Point) -> None:
        flags = self._slim(point)
        flags.request()
        check_head(self._opened, flags)

    def dense(self, folder: Path) -> Path:
        """The file itself, or one that is rewritten as the slim ones are."""
        outputs, target = separated(self.flags.outputs), folder / "dense.onnx"
        if not self.flags.optimize and not outputs:
            return self.path
        from slimdeploy.cli.export.from_onnx import export_file

        stage = export_stage(None, GraphOptions(optimize=self.flags.optimize))
        export_file(stage, self.path, outputs, target)
        return target

    def make(self, point: Point, folder: Path) -> Made:
        slim, record = folder / "slim.onnx", folder / "verify.json"
        refitted = None if self.shared.reconstruct == "none" else folder / "refitted.onnx"
        _, schedule, schedule_path = write_slim_file(self.path, self._slim(point), slim, refitted)
        check = Check(
            slim=slim,
            dense=refitted or self.path,
            keep_schedule=schedule_path,
            data_dir=self.shared.data_dir,
            split=self.shared.split,
            images=VERIFIED_IMAGES,
            seed=0,
            tolerance=None,
            per_block=True,
            pool_kept=self.flags.pool_kept,
            threads=None,
            output=record,
        )
        proven, proofs = prove_file(check)
        require_proven(check, proven, proofs)
        files = {"onnx": slim, "schedule": schedule_path, "verification": record}
        if refitted is not None:
            files["dense"] = refitted
        worst = max(x.relative for proof in proofs.values() for x in proof.outputs.values())
        return Made(slim, schedule, worst, files)

    def _slim(self, point: Point) -> OnnxSlim:
        c, scorer = self.shared, per_image(point.impact)
        return OnnxSlim(
            data_dir=c.data_dir,
            split=c.split,
            mac_reduction=point.wanted,
            shape=c.shape,
            multiple_of=c.multiple_of,
            impact=None if scorer else point.impact,
            reconstruct=c.reconstruct,
            images=c.images,
            search_images=SEARCH_IMAGES if scorer else c.search_images,
            ridge=c.ridge,
            seed=point.seed,
            file=self.flags,
            dynamic=scorer,
        )
