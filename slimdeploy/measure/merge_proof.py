"""Prove a graph that merges against the dense one, image by image, without torch.

What the slim file says it merged for an image is averaged in the dense graph, in which every token
is computed: then the outputs must agree. And each merging must be of the most similar pairs, by the
tokens that the averaging dense graph computes, up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from slimdeploy.engine import TensorInfo
from slimdeploy.errors import GateError
from slimdeploy.graph.dynamic import ChoicePlan, MergeNames
from slimdeploy.graph.masked.averaged import Averaged, averaged_graph
from slimdeploy.measure.block_parity import Array
from slimdeploy.measure.image_proof import SHORTFALL, Decided
from slimdeploy.measure.merges import Groups, groups_of, moved, shortfall, with_merges


@dataclass
class MergePair:
    """A file that merges and the dense graph it is judged by; make it with `merge_pair`.

    Attributes:
        slim: the file.
        worst: the largest shortfall seen, in standard deviations of the similarities.
    """

    slim: Path
    probed: onnx.ModelProto
    names: list[MergeNames | None]
    plan: ChoicePlan
    averaged: Averaged
    batch: int = 16
    worst: float = -np.inf

    @property
    def remark(self) -> str:
        """What was found of the mergings, for a person."""
        each = "a schedule that merges: each image against the dense graph with its groups averaged"
        return f"{each}; pairs miss the most similar by {max(self.worst, 0.0):.1e} deviations"

    @property
    def reference(self) -> onnx.ModelProto:
        """The dense graph that averages."""
        return self.averaged.model

    def decided(self, seen: Mapping[str, Array], images: int) -> Decided:
        """Per block where its rows go, [images, held]; None where none merge."""
        return moved(seen, self.names, self.plan)

    def feeds(self, inputs: Sequence[TensorInfo], decided: Decided) -> dict[str, Array]:
        """What makes each token the mean of its group where a block begins."""
        feeds: dict[str, Array] = {}
        for name, groups in zip(
            self.averaged.means, groups_of(decided, self.plan, 1), strict=False
        ):
            if name is not None:
                same = groups.of[0][:, None] == groups.of[0][None, :]
                feeds[name] = same / same.sum(1, keepdims=True)
        return feeds

    def check(self, tokens: Mapping[str, Array], decided: Decided, tolerance: float) -> None:
        """Compare each merging with the similarities of the tokens that the block was given."""
        plan = self.plan
        before = [Groups.single(1, plan.tokens), *groups_of(decided, plan, 1)]
        for index, to in enumerate(decided):
            if to is None:
                continue
            x = before[index].means(tokens[self.averaged.entering[index]])[0]
            over = shortfall(x, to[0], plan.counts[index], plan.prefix)
            self.worst = max(self.worst, over)
            if over > SHORTFALL * tolerance:
                raise GateError(
                    f"block {index + 1} merged a pair that is {over:.2e} standard deviations less "
                    "similar than one that it left"
                )


def merge_pair(
    dense: onnx.ModelProto, slim: onnx.ModelProto, path: Path, plan: ChoicePlan
) -> MergePair:
    """Make ready to compare the merging graph `slim`, which lies at `path`, with `dense`.

    Raises:
        InputError: if the file names no mergings.
        GraphError: as `averaged_graph`.
    """
    probed, names = with_merges(slim)
    return MergePair(path, probed, names, plan, averaged_graph(dense, plan.chooses))
