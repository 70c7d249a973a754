"""Prove a graph that chooses tokens against the dense one, image by image, without torch.

What the slim file says it chose for an image is masked into the dense graph, in which every token
is computed: then the outputs must agree. And each choice must be the best by the scores of the
tokens that the masked dense graph computes, up to rounding: of two that are almost equal, either
may be taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from slimdeploy.engine import TensorInfo
from slimdeploy.errors import GateError
from slimdeploy.graph.dynamic import ChoicePlan
from slimdeploy.graph.masked import masked_streams
from slimdeploy.graph.probes import Probe, entering, give_streams
from slimdeploy.measure.block_parity import Array
from slimdeploy.measure.choices import chosen_ids, standardised, with_choices
from slimdeploy.measure.image_proof import SHORTFALL, Decided


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

    def decided(self, seen: Mapping[str, Array], images: int) -> Decided:
        """Per block the ids that it keeps, [images, counts[l]]."""
        rows = [None if name is None else seen[name] for name in self.rows]
        plan = self.plan
        return chosen_ids(rows, plan.counts, plan.tokens, plan.read, images)

    def feeds(self, inputs: Sequence[TensorInfo], decided: Decided) -> dict[str, Array]:
        """The masks that hide from each block the keys that the one before has dropped."""
        feeds: dict[str, Array] = {}
        for info in inputs:
            if info.name in self.masks:
                kept = decided[self.masks.index(info.name) - 1]
                assert kept is not None
                seen = np.isin(np.arange(self.plan.tokens), kept)
                if info.dtype != "bool":
                    seen = np.where(seen, 0, -3e4 if info.dtype == "float16" else -1e30)
                feeds[info.name] = np.broadcast_to(seen, [size or 1 for size in info.shape])
        return feeds

    def check(self, tokens: Mapping[str, Array], decided: Decided, tolerance: float) -> None:
        """Compare each block's choice with the scores of the tokens that it was given."""
        plan, held = self.plan, np.arange(self.plan.tokens)
        for index, (found, chooses) in enumerate(zip(decided, plan.chooses, strict=False)):
            assert found is not None
            always, ids = np.arange(plan.prefix), found[0]
            if chooses and not np.isin(always, ids).all():
                raise GateError(f"block {index + 1} dropped a prefix token")
            if len(np.unique(ids)) != len(ids):
                raise GateError(f"block {index + 1} chose a token twice")
            if chooses and plan.dynamic.scorer != "key-norm":
                scores = _scores(plan, index, tokens[self.entering[index]][0].astype(np.float64))
                left = np.setdiff1d(held, ids)
                taken = np.setdiff1d(ids, always)
                over = (scores[left].max() - scores[taken].min()) / max(scores.std(), 1e-30)
                self.worst = max(-np.inf if self.worst is None else self.worst, float(over))
                if over > SHORTFALL * tolerance:
                    raise GateError(
                        f"block {index + 1} left out a patch that scores {over:.2e} standard "
                        "deviations above one that it took"
                    )
            held = ids


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
