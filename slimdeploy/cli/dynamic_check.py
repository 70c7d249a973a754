"""What `export` and `verify` compare a dynamic file with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdeploy.cli.common import load_onnx
from slimdeploy.errors import GateError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slimdeploy.graph.dynamic import ChoicePlan
    from slimdeploy.measure.parity import Parity
    from slimdeploy.schedule import ModelGeometry


def file_parity(
    dense: Path,
    geometry: ModelGeometry,
    slim: Path,
    plan: ChoicePlan,
    images: NDArray[np.float32],
    allowed: float,
) -> Parity:
    """How far the file `slim` is from the dense file with each image's choices masked.

    Raises:
        GateError: if a choice is not the best by its scores.
    """
    from slimdeploy.graph.outputs import keep_outputs
    from slimdeploy.measure.choice_proof import choice_pair, prove_choices
    from slimdeploy.measure.parity import worst_parity

    model = load_onnx(dense)
    keep_outputs(model, geometry.outputs)
    proof = prove_choices(choice_pair(model, load_onnx(slim), slim, plan), [images], allowed, None)
    return worst_parity(proof.outputs.values())


def replayed_parity(
    reference: Any, slim: Path, plan: ChoicePlan, images: NDArray[np.float32], allowed: float
) -> Parity:
    """How far the file's first output is from torch's, which takes the choices that the file made.

    Args:
        reference: a `DynamicVit`.

    Raises:
        GateError: if a choice is not the best by torch's scores, up to rounding.
    """
    import torch

    from slimdeploy.measure.choice_proof import SHORTFALL
    from slimdeploy.measure.choices import with_choices
    from slimdeploy.measure.feeding import infer_all
    from slimdeploy.measure.parity import compare_outputs
    from slimdeploy.measure.proof import session
    from slimdeploy.slim.dynamic import replay

    model, names = with_choices(load_onnx(slim))
    with session(model, None) as engine:
        seen = infer_all(engine, images)
        output = next(info.name for info in engine.outputs if info.name not in names)
    rows = [None if name is None else torch.from_numpy(seen[name]) for name in names]
    logits, shortfall = replay(reference.eval(), torch.from_numpy(images), rows)
    if shortfall > SHORTFALL * allowed:
        raise GateError(
            f"{slim}: left out a patch that scores {shortfall:.2e} standard deviations above one "
            "that it took"
        )
    return compare_outputs(logits.numpy(), seen[output], allowed)
