"""Small timm models beside the ONNX files that exporters make of them, and schedules for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from slimdeploy.forward.anatomy import BlockNames, block_names
from slimdeploy.forward.running import Feed, feed_of
from slimdeploy.graph import dense_graph
from slimdeploy.schedule import ModelGeometry
from slimdeploy.slim.timm_models import describe
from tests.graph.exports import EXPORTERS, build, export

IMAGES = np.random.default_rng(3).standard_normal((20, 3, 64, 64)).astype(np.float32)


class Case:
    """One model as torch runs it and as `exporter` wrote it; 3 blocks, 16 patches."""

    def __init__(
        self,
        kind: str,
        exporter: str,
        images: NDArray[np.float32] = IMAGES,
        dynamic_batch: bool = True,
    ) -> None:
        self.torch: Any = build(kind, EXPORTERS[exporter][2])
        self.torch.pretrained_cfg = {}
        self.geometry: ModelGeometry = describe(self.torch, kind)
        self.model: onnx.ModelProto = export(kind, exporter, dynamic_batch)
        self.dense: onnx.ModelProto = dense_graph(self.model).model
        self.blocks: list[BlockNames] = block_names(self.dense)
        self.images = images
        self.feed: Feed = feed_of(self.dense, images, 8)

    @property
    def tensor(self) -> torch.Tensor:
        return torch.from_numpy(self.images)

    @property
    def keep(self) -> list[list[int]]:
        """12 patches, then 3 of them, then what the head reads."""
        prefix = range(len(self.geometry.prefix))
        first = len(prefix)
        patches = [first + i for i in (0, 1, 3, 4, 5, 7, 8, 9, 10, 12, 13, 15)]
        return [
            [*prefix, *patches],
            [*prefix, *patches[2::4]],
            list(self.geometry.head_reads),
        ]


def relative(found: Any, wanted: Any) -> float:
    """The largest difference, as a share of the scale of what is wanted."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def ids_in(order: Sequence[int], keep: Sequence[Sequence[int]]) -> list[list[int]]:
    """What each block keeps, in this order of all tokens."""
    return [[i for i in order if i in set(ids)] for ids in keep]
