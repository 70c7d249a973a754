"""The top-down search of Patch Slimming (Algorithm 1): from the last layer to the first, which
tokens to keep.

Where the paper is silent, this is decided: the last layer keeps what the head reads; prefix tokens
stay in all others; the r best-scored of *all* tokens are united with what the next layer keeps, so
sets are nested; the error is relative (squared, over the target's squared norm), since the paper's
0.01 and 0.02 serve every model; before each candidate the recovering block is reset to its dense
weights. Beside the paper's tolerance, counts per layer may be given, from a budget of MACs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slimdeploy.errors import GateError, InputError
from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.schedule import Layer
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.choices import Reconstruct
from slimdeploy.slim.impact import Impact
from slimdeploy.slim.model import select
from slimdeploy.slim.reconstruct import GradientOptions, LayerProblem, reconstruct_by_gradient
from slimdeploy.slim.refit import refit_block, token_weights
from slimdeploy.slim.search_state import SearchState
from slimdeploy.store import open_store


@dataclass(frozen=True)
class SearchOptions:
    """What the search aims at.

    Attributes:
        counts: tokens to keep per layer, or None to keep as many as `tolerance` asks for.
        tolerance: the paper's epsilon: relative error allowed in the next layer's output.
        step: the paper's r', how many more tokens each candidate keeps.
        reconstruct: how a slimmed block recovers before its error is measured.
    """

    counts: Sequence[int] | None = None
    tolerance: float | None = None
    step: int = 10
    reconstruct: Reconstruct = "refit"
    seed: int = 0
    gradient: GradientOptions = field(default_factory=GradientOptions)
    refit: RidgeOptions = field(default_factory=RidgeOptions)

    def __post_init__(self) -> None:
        if (self.counts is None) == (self.tolerance is None):
            raise InputError("give one of --mac-reduction and --tolerance")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise InputError(f"--tolerance {self.tolerance}: must be between 0 and 1, as 0.02")
        if self.step < 1:
            raise InputError(f"--step {self.step}: must be at least 1")


def search(
    state: Calibration,
    impact: Impact,
    options: SearchOptions,
    saved: SearchState | None = None,
    progress: Callable[[int, Layer], None] | None = None,
) -> list[Layer]:
    """Decide what every layer keeps, last to first.

    Args:
        state: calibration images and models; its `keep` and `slim` are filled in.
        impact: the estimator of each token's impact.
        options: budget or tolerance, and reconstruction.
        saved: finished layers of a run that was killed.
        progress: called with each finished layer.

    Returns:
        Layers in order from the first, with scores and errors.

    Raises:
        GateError: if a score or an error is NaN or infinite.
    """
    last = Layer(keep=tuple(state.geometry.head_reads))
    state.keep[state.depth], found = list(last.keep), [last]
    for layer in range(state.depth - 1, 0, -1):
        changed = recovering(layer, options.reconstruct)
        done = saved.load(layer, state, changed) if saved else None
        if done is None:
            done = _slim_layer(state, impact, options, layer)
            if saved:
                saved.save(layer, done, state, changed)
        state.keep[layer] = list(done.keep)
        found.append(done)
        if progress:
            progress(layer, done)
    return found[::-1]


def _slim_layer(state: Calibration, impact: Impact, options: SearchOptions, layer: int) -> Layer:
    scores = impact.scores(state, layer)
    floor = sorted({*state.keep[layer + 1], *state.protected})
    with open_store(state.cache_bytes) as store:
        problem = LayerProblem.collect(state, layer, store)
        _require_numbers(layer, 0 < problem.norm() < math.inf)
        if options.counts is not None:
            keep = top_up(scores, floor, options.counts[layer - 1])
            recover(problem, keep, options)
            error = problem.error(keep)
        else:
            keep, error = _grow(problem, scores, floor, options)
    _require_numbers(layer, math.isfinite(error) and bool(scores.isfinite().all()))
    return Layer(
        keep=tuple(keep),
        scores=tuple(float(f"{s:.6g}") for s in scores),
        error=float(f"{error:.6g}"),
    )


def _require_numbers(layer: int, found: bool) -> None:
    if not found:
        raise GateError(
            f"layer {layer}: its error is no number, as values overflow or tokens are zero; check "
            "the weights, or try another --reconstruct"
        )


def top_up(scores: Tensor, floor: list[int], count: int) -> list[int]:
    """`floor` and the best-scored other tokens, `count` in all (more if the floor is larger)."""
    free = scores.clone().double()
    free[floor] = -torch.inf
    best = torch.argsort(-free, stable=True)[: max(count - len(floor), 0)]
    return sorted({*floor, *best.tolist()})


def _grow(
    problem: LayerProblem, scores: Tensor, floor: list[int], options: SearchOptions
) -> tuple[list[int], float]:
    """Algorithm 1's inner loop: r best of all tokens, more of them until the error is tolerable."""
    state, tried = problem.state, -1
    assert options.tolerance is not None
    for r in range(0, state.tokens + options.step, options.step):
        best = torch.argsort(-scores.double(), stable=True)[:r].tolist()
        keep = sorted({*floor, *best})
        if len(keep) == tried:
            continue  # the r best were all kept already: the same candidate
        tried = len(keep)
        recover(problem, keep, options)
        error = problem.error(keep)
        if error <= options.tolerance or len(keep) == state.tokens:
            break
    return keep, error


def recover(problem: LayerProblem, keep: list[int], options: SearchOptions) -> None:
    """Reset a block to its dense weights and let it recover for this candidate.

    By gradient it is the block of the layer being slimmed, as in the paper. In closed form it is
    the next one: the slimmed layer's own outputs are exact at the tokens it keeps; what is missing
    are keys and values of the next.
    """
    index = recovering(problem.layer, options.reconstruct)
    if index is None:
        return
    state = problem.state
    block, dense = state.slim.blocks[index], state.dense.blocks[index]
    block.load_state_dict(dense.state_dict())
    if options.reconstruct == "gradient":
        reconstruct_by_gradient(problem, keep, options.gradient, options.seed + problem.layer)
    elif len(keep) < state.tokens:
        later = state.keep[problem.layer + 1]
        refit_block(
            block,
            dense,
            [select(x, torch.tensor(keep)) for x in problem.middle],
            problem.middle,
            problem.later_rows(keep),
            torch.tensor(later),
            token_weights(later, state.geometry.head_reads, options.refit),
            options.refit,
        )


def recovering(layer: int, reconstruct: Reconstruct) -> int | None:
    """Index of the block that changes while `layer` (from 1) is slimmed, if one does."""
    return {"gradient": layer - 1, "refit": layer, "none": None}[reconstruct]
