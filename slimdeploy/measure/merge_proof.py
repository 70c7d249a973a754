"""Prove a graph that merges against the dense one, image by image, without torch.

What the slim file says it merged for an image is averaged in the dense graph, in which every token
is computed: then the outputs must agree. And each merging must be of the most similar pairs, by the
tokens that the averaging dense graph computes, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from slimdeploy.engine import Engine, open_engine
from slimdeploy.errors import GateError
from slimdeploy.graph.dynamic import ChoicePlan, MergeNames
from slimdeploy.graph.masked.averaged import Averaged, averaged_graph
from slimdeploy.measure.choice_proof import SHORTFALL, given_outputs, repeated
from slimdeploy.measure.choices import standardised
from slimdeploy.measure.feeding import infer_all
from slimdeploy.measure.merges import Array, Groups, Ids, moved, with_merges
from slimdeploy.measure.parity import Parity, compare_outputs
from slimdeploy.measure.proof import Proof, merged, session


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
    reference: Averaged
    batch: int = 16
    worst: float = -np.inf

    @property
    def remark(self) -> str:
        """What was found of the mergings, for a person."""
        each = "a schedule that merges: each image against the dense graph with its groups averaged"
        return f"{each}; pairs miss the most similar by {max(self.worst, 0.0):.1e} deviations"


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


def prove_merges(
    pair: MergePair, batches: Iterable[Array], tolerance: float, threads: int | None
) -> Proof:
    """Run both on all images and compare.

    Raises:
        GateError: if pairs are not the most similar, or outputs have other shapes.
        InputError: if a model cannot be run.
    """
    parts: dict[str, Parity] = {}
    images = 0
    with (
        session(pair.probed, threads) as probed,
        session(pair.reference.model, threads) as reference,
        open_engine(pair.slim, threads=threads) as shipped,
    ):
        outputs = given_outputs(reference, shipped)
        for batch in batches:
            found = moved(infer_all(probed, batch), pair.names, pair.plan)
            result = infer_all(shipped, batch)
            for place in range(len(batch)):
                mine = [None if to is None else to[place : place + 1] for to in found]
                expected = _averaged(reference, pair, batch[place : place + 1], mine)
                _check(pair, expected, mine, tolerance)
                for name in outputs:
                    y = result[name][place : place + 1].reshape(1, -1)
                    parity = compare_outputs(expected[name].reshape(1, -1), y, tolerance)
                    parts[name] = merged(parts[name], parity) if name in parts else parity
            images += len(batch)
    return Proof(images, parts, [])


def _averaged(
    reference: Engine, pair: MergePair, image: Array, found: Sequence[Ids | None]
) -> dict[str, Array]:
    """What the dense graph computes for one image with its groups averaged."""
    groups, feeds = Groups.single(1, pair.plan.tokens), dict[str, Array]()
    for index, to in enumerate(found):
        name = pair.reference.means[index]
        if to is not None and name is not None:
            groups = groups.merged(to, pair.plan.counts[index], pair.plan.prefix)
            same = groups.of[0][:, None] == groups.of[0][None, :]
            feeds[name] = same / same.sum(1, keepdims=True)
    return repeated(reference, image, feeds)


def _check(
    pair: MergePair, tokens: dict[str, Array], found: Sequence[Ids | None], tolerance: float
) -> None:
    """Compare each merging with the similarities of the tokens that the block was given."""
    plan, groups = pair.plan, Groups.single(1, pair.plan.tokens)
    for index, to in enumerate(found):
        if to is None:
            continue
        x = tokens[pair.reference.entering[index]].astype(np.float64)
        over = shortfall(groups.means(x)[0], to[0], plan.counts[index], plan.prefix)
        pair.worst = max(pair.worst, over)
        if over > SHORTFALL * tolerance:
            raise GateError(
                f"block {index + 1} merged a pair that is {over:.2e} standard deviations less "
                "similar than one that it left"
            )
        groups = groups.merged(to, plan.counts[index], plan.prefix)


def shortfall(tokens: Array, to: Ids, count: int, prefix: int) -> float:
    """By how much the merged pairs miss the most similar ones, in deviations of the similarities.

    Args:
        tokens: rows that enter a block, [k, D].
        to: where each row goes, [k].
        count: rows that are left.
    """
    patches = standardised(tokens[prefix:])
    similar = patches[::2] @ patches[1::2].T
    first, second = to[prefix::2], to[prefix + 1 :: 2]
    moving = first >= second.min()
    if moving.sum() != len(to) - count or len(np.unique(to)) != count:
        raise GateError(f"a merging leaves {len(np.unique(to))} rows, not {count}")
    best = similar.max(1)
    own = similar[moving, first[moving] - second.min()]
    over = (best[moving] - own).max()
    if not moving.all():
        over = max(over, best[~moving].max() - best[moving].min())
    return float(over / max(similar.std(), 1e-30))
