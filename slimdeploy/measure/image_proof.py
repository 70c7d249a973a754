"""Prove a file in which each image decides for itself: what it keeps, or what it merges."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import onnx

from slimdeploy.graph.dynamic import ChoicePlan
from slimdeploy.measure.block_parity import Array
from slimdeploy.measure.choice_proof import ChoicePair, choice_pair, prove_choices
from slimdeploy.measure.merge_proof import MergePair, merge_pair, prove_merges
from slimdeploy.measure.proof import Proof

ImagePair: TypeAlias = ChoicePair | MergePair


def image_pair(
    dense: onnx.ModelProto, slim: onnx.ModelProto, path: Path, plan: ChoicePlan
) -> ImagePair:
    """Make ready to compare the graph `slim`, which lies at `path`, with `dense`.

    Raises:
        InputError: if the file does not name what it decides.
        GraphError: if the dense graph cannot be made to compute the same.
    """
    make = merge_pair if plan.dynamic.merges else choice_pair
    return make(dense, slim, path, plan)


def prove_images(
    pair: ImagePair, batches: Iterable[Array], tolerance: float, threads: int | None
) -> Proof:
    """Run both on all images and compare.

    Raises:
        GateError: if a decision is not the best, or outputs have other shapes.
        InputError: if a model cannot be run.
    """
    if isinstance(pair, MergePair):
        return prove_merges(pair, batches, tolerance, threads)
    return prove_choices(pair, batches, tolerance, threads)
