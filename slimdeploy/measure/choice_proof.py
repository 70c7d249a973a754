"""Prove a dynamic graph against the dense one, image by image, without torch.

What the slim file says it chose for an image is masked into the dense graph, in which every token
is computed: then the outputs must agree. And each choice must be the best by the scores of the
tokens that the masked dense graph computes, up to rounding: of two that are almost equal, either
may be taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from slimdeploy.engine import Engine, open_engine
from slimdeploy.errors import GateError
from slimdeploy.graph.dynamic import ChoicePlan
from slimdeploy.graph.masked import masked_streams
from slimdeploy.graph.probes import Probe, entering, give_streams
from slimdeploy.measure.block_parity import Array
from slimdeploy.measure.choices import chosen_ids, standardised, with_choices
from slimdeploy.measure.feeding import infer_all, laid_out
from slimdeploy.measure.parity import Parity, compare_outputs
from slimdeploy.measure.proof import Proof, merged, session

SHORTFALL = 50
"""Choices may miss the best by this many tolerances, in standard deviations of the scores."""


@dataclass
class ChoicePair:
    """A dynamic file and the dense graph it is judged by; make it with `choice_pair`.

    Attributes:
        slim: the file.
        reference: the dense graph, with masks and images as inputs and the tokens that enter each
            block as further outputs.
        masks: per block the name of its mask, if it has one.
        entering: per block the name of the tokens that enter it.
        worst: the largest shortfall seen, in standard deviations; None for scores that the tokens
            alone do not tell (key-norm).
    """

    slim: Path
    probed: onnx.ModelProto
    rows: list[str | None]
    plan: ChoicePlan
    reference: onnx.ModelProto
    masks: list[str | None]
    entering: list[str]
    batch: int = 16
    worst: float | None = None

    @property
    def remark(self) -> str:
        """What was found of the choices, for a person."""
        each = "a dynamic schedule: each image against the dense graph with its own choices masked"
        if self.worst is None:
            return f"{each}; that they are the best was not checked: it takes the keys' norms"
        return f"{each}; choices miss the best by {max(self.worst, 0.0):.1e} standard deviations"


def choice_pair(
    dense: onnx.ModelProto, slim: onnx.ModelProto, path: Path, plan: ChoicePlan
) -> ChoicePair:
    """Make ready to compare the dynamic graph `slim`, which lies at `path`, with `dense`.

    Raises:
        GateError: if the file names no choices.
        GraphError: as `masked_graph`.
    """
    probed, rows = with_choices(slim)
    reference, probes = masked_streams(dense, plan.places)
    masks = [_mask_as_input(reference, probe) for probe in probes]
    inputs = [entering(reference, probe) for probe in probes]
    give_streams(reference, inputs, probes)
    return ChoicePair(path, probed, rows, plan, reference, masks, inputs)


def prove_choices(
    pair: ChoicePair, batches: Iterable[Array], tolerance: float, threads: int | None
) -> Proof:
    """Run both on all images and compare.

    Raises:
        GateError: if a choice is not the best, or outputs have other shapes.
        InputError: if a model cannot be run.
    """
    parts: dict[str, Parity] = {}
    images = 0
    with (
        session(pair.probed, threads) as probed,
        session(pair.reference, threads) as reference,
        open_engine(pair.slim, threads=threads) as shipped,
    ):
        outputs = given_outputs(reference, shipped)
        for batch in batches:
            seen = infer_all(probed, batch)
            rows = [None if name is None else seen[name] for name in pair.rows]
            plan = pair.plan
            ids = chosen_ids(rows, plan.counts, plan.tokens, plan.read, len(batch))
            result = infer_all(shipped, batch)
            for place in range(len(batch)):
                kept = [layer[place] for layer in ids]
                expected = _masked(reference, pair, batch[place : place + 1], kept)
                _check_choices(pair, expected, kept, tolerance)
                for name in outputs:
                    found = result[name][place : place + 1].reshape(1, -1)
                    parity = compare_outputs(expected[name].reshape(1, -1), found, tolerance)
                    parts[name] = merged(parts[name], parity) if name in parts else parity
            images += len(batch)
    return Proof(images, parts, [])


def given_outputs(reference: Engine, shipped: Engine) -> list[str]:
    """Names of the outputs that both have.

    Raises:
        GateError: if there is none.
    """
    given = {info.name for info in reference.outputs}
    outputs = [info.name for info in shipped.outputs if info.name in given]
    if not outputs:
        raise GateError(f"it has none of the dense graph's outputs {sorted(given)}")
    return outputs


def _masked(
    reference: Engine, pair: ChoicePair, image: Array, kept: Sequence[Array]
) -> dict[str, Array]:
    """What the dense graph computes for one image with its dropped tokens hidden as keys."""
    feeds: dict[str, Array] = {}
    for info in reference.inputs:
        if info.name in pair.masks:
            block = pair.masks.index(info.name)
            seen = np.isin(np.arange(pair.plan.tokens), kept[block - 1])
            if info.dtype != "bool":
                seen = np.where(seen, 0, -3e4 if info.dtype == "float16" else -1e30)
            feeds[info.name] = np.broadcast_to(seen, [size or 1 for size in info.shape])
    return repeated(reference, image, feeds)


def repeated(reference: Engine, image: Array, feeds: dict[str, Array]) -> dict[str, Array]:
    """All outputs for one image [1, C, H, W]; of a fixed batch it takes every place.

    Args:
        feeds: the other inputs by name, of any type.
    """
    fed, rows = dict[str, Array](), 1
    for info in reference.inputs:
        if info.name in feeds:
            fed[info.name] = feeds[info.name].astype(info.dtype)
        else:
            rows = info.shape[0] or 1
            fed[info.name] = np.repeat(laid_out(image, info), rows, 0).astype(info.dtype)
    found = reference.infer(fed)
    return {name: y[: max(1, len(y) // rows)] for name, y in found.items()}


def _check_choices(
    pair: ChoicePair, tokens: dict[str, Array], kept: Sequence[Array], tolerance: float
) -> None:
    """Compare each block's choice with the scores of the tokens that it was given."""
    plan, held = pair.plan, np.arange(pair.plan.tokens)
    for index, (ids, chooses) in enumerate(zip(kept, plan.chooses, strict=False)):
        always = np.arange(plan.prefix)
        if chooses and not np.isin(always, ids).all():
            raise GateError(f"block {index + 1} dropped a prefix token")
        if len(np.unique(ids)) != len(ids):
            raise GateError(f"block {index + 1} chose a token twice")
        if chooses and plan.dynamic.scorer != "key-norm":
            scores = _scores(plan, index, tokens[pair.entering[index]][0].astype(np.float64))
            left = np.setdiff1d(held, ids)
            taken = np.setdiff1d(ids, always)
            over = (scores[left].max() - scores[taken].min()) / max(scores.std(), 1e-30)
            pair.worst = max(-np.inf if pair.worst is None else pair.worst, float(over))
            if over > SHORTFALL * tolerance:
                raise GateError(
                    f"block {index + 1} left out a patch that scores {over:.2e} standard "
                    "deviations above one that it took"
                )
        held = ids


def _scores(plan: ChoicePlan, index: int, tokens: Array) -> Array:
    """Scores of all tokens, [N] from [N, D]."""
    if plan.dynamic.scorer == "token-norm":
        norms: Array = np.square(tokens).sum(-1)
        return norms
    scores: Array = standardised(tokens) @ np.asarray(plan.dynamic.weights[index])
    return scores


def _mask_as_input(model: onnx.ModelProto, probe: Probe) -> str | None:
    """Let a block's mask be fed; its name, or None for a block that sees all tokens."""
    names = {f"masked.{probe.anchor}.hidden_keys", f"masked.{probe.anchor}.visible"}
    for place, tensor in enumerate(model.graph.initializer):
        if tensor.name in names:
            name: str = tensor.name
            value = onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            model.graph.input.append(value)
            del model.graph.initializer[place]
            return name
    return None
