"""What a file in which each image decides for itself is proved by."""

from __future__ import annotations

from pathlib import Path

import onnx

from slimdeploy.graph.dynamic import ChoicePlan
from slimdeploy.measure.choice_proof import choice_pair
from slimdeploy.measure.image_proof import ImagePair
from slimdeploy.measure.merge_proof import merge_pair


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
