"""What a build process tells the one that started it: everything read back, nothing assumed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from slimdeploy.engine.gpu import Gpu
from slimdeploy.engine.layers import EngineLayer, Tensor
from slimdeploy.engine.protocol import TensorInfo
from slimdeploy.engine.trt.parse import Attention


@dataclass(frozen=True)
class BuildReport:
    """One build.

    Attributes:
        version: of the backend.
        gpu: the GPU it was built on; None for a build without one.
        targets: what it runs on, in words: "sm_87", "8.6, 8.9", "CPUExecutionProvider", ...
        inputs, outputs: of the parsed model.
        attentions: each block's token counts, as the parsed model has them.
        layers: the engine's kernels; [] if it does not tell.
        layers_from: where they were read: "inspector", "build log" or "".
        workspace_gb: the limit that was set; None for none.
        notes: what a person should know: a cache that was not used, a limit that was lowered.
        parse_seconds, build_seconds: wall time; of the first build if it comes from a cache.
        cached: whether the engine was built before and came from the engine cache.
    """

    version: str
    gpu: Gpu | None
    targets: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    attentions: tuple[Attention, ...]
    layers: tuple[EngineLayer, ...] = ()
    layers_from: str = ""
    workspace_gb: float | None = None
    notes: tuple[str, ...] = ()
    parse_seconds: float = 0.0
    build_seconds: float = 0.0
    cached: bool = False
    precision: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BuildReport:
        """From `to_json` after a round trip through JSON."""
        gpu = data["gpu"]
        made = {
            "gpu": gpu and Gpu(**{**gpu, **_pairs(gpu, "compute_capability", "driver_cuda")}),
            "inputs": _tensor_infos(data["inputs"]),
            "outputs": _tensor_infos(data["outputs"]),
            "attentions": tuple(Attention(**row) for row in data["attentions"]),
            "layers": tuple(_layer(row) for row in data["layers"]),
            "notes": tuple(data["notes"]),
        }
        return cls(**{**data, **made})


def _pairs(data: dict[str, Any], *names: str) -> dict[str, tuple[int, int]]:
    return {name: (data[name][0], data[name][1]) for name in names}


def _tensor_infos(rows: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(row["name"], tuple(row["shape"]), row["dtype"]) for row in rows)


def _layer(row: dict[str, Any]) -> EngineLayer:
    tensors = {
        key: tuple(Tensor(t["name"], tuple(t["shape"]), t["dtype"]) for t in row[key])
        for key in ("inputs", "constants", "outputs")
    }
    return EngineLayer(row["name"], row["kind"], tuple(row["nodes"]), **tensors)
