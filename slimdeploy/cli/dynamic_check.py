"""What `export` and `verify` compare a dynamic file with."""

from __future__ import annotations

from collections.abc import Callable
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
    from slimdeploy.measure.image_pairs import image_pair
    from slimdeploy.measure.image_proof import prove_images
    from slimdeploy.measure.parity import worst_parity

    model = load_onnx(dense)
    keep_outputs(model, geometry.outputs)
    proof = prove_images(image_pair(model, load_onnx(slim), slim, plan), [images], allowed, None)
    return worst_parity(proof.outputs.values())


def replayed_parity(
    reference: Any, slim: Path, plan: ChoicePlan, images: NDArray[np.float32], allowed: float
) -> Parity:
    """How far the file's first output is from torch's, which decides as the file did.

    Args:
        reference: a `DynamicVit` or `MergeVit`.

    Raises:
        GateError: if a decision is not the best by torch's scores, up to rounding.
    """
    import torch

    from slimdeploy.measure.feeding import infer_all
    from slimdeploy.measure.image_proof import SHORTFALL
    from slimdeploy.measure.parity import compare_outputs
    from slimdeploy.measure.proof import session
    from slimdeploy.slim.dynamic import MergeVit, replay, replay_merges

    model, decided = _probed(slim, plan)
    with session(model, None) as engine:
        seen = infer_all(engine, images)
        output = engine.outputs[0].name
    rows = [None if found is None else torch.from_numpy(found) for found in decided(seen)]
    reference.eval()
    replays = replay_merges if isinstance(reference, MergeVit) else replay
    logits, shortfall = replays(reference, torch.from_numpy(images), rows)
    if shortfall > SHORTFALL * allowed:
        by = f"{shortfall:.2e} standard deviations"
        if plan.dynamic.merges:
            raise GateError(f"{slim}: merged a pair {by} less similar than one that it left")
        raise GateError(f"{slim}: left out a patch that scores {by} above one that it took")
    return compare_outputs(logits.numpy(), seen[output], allowed)


def _probed(slim: Path, plan: ChoicePlan) -> tuple[Any, Callable[[Any], list[Any]]]:
    """The file with what it decides as outputs, and what makes rows of these, block by block."""
    from slimdeploy.measure.choices import with_choices
    from slimdeploy.measure.merges import moved, with_merges

    if plan.dynamic.merges:
        model, names = with_merges(load_onnx(slim))
        return model, lambda seen: moved(seen, names, plan)
    model, chosen = with_choices(load_onnx(slim))
    return model, lambda seen: [None if name is None else seen[name] for name in chosen]
