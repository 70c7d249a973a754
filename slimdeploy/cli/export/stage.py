"""What both kinds of `slimdeploy export` share: the graph stage and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdeploy.cli.common import load_arrays, open_images
from slimdeploy.dynamic import dense_reference
from slimdeploy.errors import InputError
from slimdeploy.graph.options import GraphOptions
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from slimdeploy.graph import SlimGraph
    from slimdeploy.graph.dynamic import ChoicePlan

PACKAGES = ("onnx", "onnx-graphsurgeon", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Stage:
    """What is to be made of a dense graph, and how it is checked."""

    schedule_path: Path | None
    lossless: bool
    options: GraphOptions
    data_dir: Path | None
    split: str | None
    tolerance: float | None
    check: bool

    def __post_init__(self) -> None:
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise InputError(f"--tolerance {self.tolerance}: must be above 0 and below 1")
        if self.split is not None and self.data_dir is None:
            raise InputError("--split: goes with --data-dir")

    @cached_property
    def schedule(self) -> KeepSchedule | None:
        return None if self.schedule_path is None else KeepSchedule.read(self.schedule_path)

    @property
    def keep(self) -> list[list[int]] | None:
        """Global ids kept per layer; None without a schedule."""
        return None if self.schedule is None else self.schedule.keep

    @cached_property
    def plan(self) -> ChoicePlan | None:
        """What a dynamic schedule asks for; None for a static one, or none."""
        from slimdeploy.graph.dynamic import ChoicePlan

        return None if self.schedule is None else ChoicePlan.of(self.schedule)

    @property
    def pool_kept(self) -> bool:
        """Whether the head pools over the kept tokens: asked for here, or by the schedule."""
        return self.options.pool_kept or (self.schedule is not None and self.schedule.pool_kept)

    @property
    def kind(self) -> str:
        """What comes out: dense, lossless or slim."""
        if self.schedule is not None:
            return "slim"
        return "lossless" if self.lossless else "dense"

    def dense_file(self, given: Path | None) -> Path | None:
        """The dense ONNX file: the given one, or the one that the schedule was made for.

        Raises:
            InputError: if the schedule is for an ONNX file that is gone or has changed.
        """
        from slimdeploy.cli.common import find_weights

        if given is None and self.schedule is not None and self.schedule.model.source == "onnx":
            assert self.schedule_path is not None
            given = find_weights(self.schedule.checkpoint, self.schedule_path, "--onnx")
            if given is None:
                raise InputError(f"{self.schedule_path}: names no ONNX file; give it with --onnx")
        return given

    def apply(self, graph: onnx.ModelProto, source: str) -> SlimGraph:
        """The graph stage. `graph` may be altered.

        Raises:
            InputError, GraphError, GateError: as `slim_graph`.
        """
        from slimdeploy.graph import dense_graph, lossless_graph, slim_graph

        if self.keep is not None:
            options = replace(self.options, pool_kept=self.pool_kept)
            return slim_graph(graph, self.keep, options, source=source, plan=self.plan)
        make = lossless_graph if self.lossless else dense_graph
        return make(graph, self.options, source=source)

    def allowed(self, graph: onnx.ModelProto) -> float:
        """The largest difference allowed: as asked, or as the weights' type makes it."""
        from slimdeploy.measure.onnx_file import coarsest_weights
        from slimdeploy.measure.parity import TOLERANCES

        return self.tolerance or TOLERANCES[coarsest_weights(graph)]

    def images(
        self, preprocessing: Preprocessing | None, size: tuple[int, int, int]
    ) -> NDArray[np.float32]:
        """What the check runs on: a few photographs, or noise, [n, C, H, W]."""
        if self.data_dir is not None:
            if preprocessing is None:
                raise InputError(
                    "--data-dir: the preprocessing is not known: neither the schedule nor the "
                    "model's manifest records it; give plan --mean and --std"
                )
            folder = open_images(self.data_dir, self.split, "val", labelled=False)
            return load_arrays(folder.sample(16, seed=0), preprocessing)
        import numpy as np

        noise = np.random.default_rng(0).standard_normal((4, *size))
        return noise.astype(np.float32)

    def sentence(self, result: dict[str, Any]) -> str:
        """The result for a person."""
        if result["source"] == "timm":
            against = "torch"
        elif self.schedule is None:
            against = "the dense graph"
        else:
            against = dense_reference(self.schedule.dynamic)
        parity = result["parity"]
        found = "not checked" if parity is None else (
            f"differs from {against} by {parity['relative']:.1e} of the outputs' scale on "
            f"{parity['rows']} images"
        )  # fmt: skip
        return "\n".join(
            [f"wrote {result['output']} ({result['kind']}): {found}", *result["notes"]]
        )
