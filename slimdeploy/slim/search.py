"""The top-down search of Patch Slimming (Algorithm 1): from the last layer to the first, which
tokens to keep.

Where the paper is silent, this is decided: the last layer keeps what the head reads; prefix tokens
stay in all others; the r best-scored of *all* tokens are united with what the next layer keeps, so
sets are nested; the error is relative (squared, over the target's squared norm), since the paper's
0.01 and 0.02 serve every model; before each candidate the recovering block is reset to its dense
weights. Beside the paper's tolerance, counts per layer may be given, from a budget of MACs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from slimdeploy.errors import InputError
from slimdeploy.files import atomic_path, write_text
from slimdeploy.schedule import Layer
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.choices import Reconstruct
from slimdeploy.slim.impact import Impact
from slimdeploy.slim.model import select
from slimdeploy.slim.reconstruct import GradientOptions, LayerProblem, reconstruct_by_gradient
from slimdeploy.slim.refit import RefitOptions, refit_block, token_weights

_MARK = "settings.json"


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
    refit: RefitOptions = field(default_factory=RefitOptions)

    def __post_init__(self) -> None:
        if (self.counts is None) == (self.tolerance is None):
            raise InputError("give one of --mac-reduction and --tolerance")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise InputError(f"--tolerance {self.tolerance}: must be between 0 and 1, as 0.02")
        if self.step < 1:
            raise InputError(f"--step {self.step}: must be at least 1")


class SearchState:
    """The search's folder of finished layers, from which a killed run goes on.

    `settings.json` says what the run was; a folder of another run is not used. Each layer is one
    atomically written file, with the block's weights beside it when reconstruction changed them.
    """

    def __init__(self, folder: Path | None, settings: dict[str, object]) -> None:
        self.folder = folder
        if folder is None:
            return
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        mark = folder / _MARK
        if folder.is_dir() and not (mark.is_file() and mark.read_text() == text):
            self.clear()
        write_text(mark, text)

    def load(self, layer: int, state: Calibration) -> Layer | None:
        """The finished layer, with its block's weights put into `state.slim`; None if not done."""
        if self.folder is None or not (path := self._path(layer, "json")).is_file():
            return None
        for weights in self.folder.glob(f"layer-{layer:03d}.block-*.safetensors"):
            block = int(weights.name.split(".")[1].removeprefix("block-"))
            state.slim.blocks[block].load_state_dict(load_file(weights))
        return Layer.model_validate_json(path.read_bytes())

    def save(self, layer: int, found: Layer, state: Calibration, changed: int | None) -> None:
        """Record a finished layer; the weights first, so that a record implies them."""
        if self.folder is None:
            return
        if changed is not None:
            with atomic_path(self._path(layer, f"block-{changed}.safetensors")) as path:
                save_file(state.slim.blocks[changed].state_dict(), path)
        write_text(self._path(layer, "json"), found.model_dump_json())

    def remember(self, name: str, value: object) -> None:
        """Keep a small result of this run by name."""
        if self.folder is not None:
            write_text(self.folder / f"{name}.json", json.dumps(value))

    def recall(self, name: str) -> Any:
        """What was remembered by that name; None if nothing was."""
        if self.folder is None or not (path := self.folder / f"{name}.json").is_file():
            return None
        return json.loads(path.read_text())

    def clear(self) -> None:
        """Remove the folder: the search is done, or was another."""
        if self.folder is not None and self.folder.is_dir():
            # The mark goes first: layers without one are never used, so a kill in here does not
            # leave some of them to a run that would not fit them.
            for path in sorted(self.folder.iterdir(), key=lambda p: p.name != _MARK):
                path.unlink()
            self.folder.rmdir()

    def _path(self, layer: int, suffix: str) -> Path:
        assert self.folder is not None
        return self.folder / f"layer-{layer:03d}.{suffix}"


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
    """
    last = Layer(keep=tuple(state.geometry.head_reads))
    state.keep[state.depth], found = list(last.keep), [last]
    for layer in range(state.depth - 1, 0, -1):
        done = saved.load(layer, state) if saved else None
        if done is None:
            done = _slim_layer(state, impact, options, layer)
            if saved:
                saved.save(layer, done, state, recovering(layer, options.reconstruct))
        state.keep[layer] = list(done.keep)
        found.append(done)
        if progress:
            progress(layer, done)
    return found[::-1]


def _slim_layer(state: Calibration, impact: Impact, options: SearchOptions, layer: int) -> Layer:
    scores = impact.scores(state, layer)
    problem = LayerProblem.collect(state, layer)
    floor = sorted({*state.keep[layer + 1], *state.protected})
    if options.counts is not None:
        keep = top_up(scores, floor, options.counts[layer - 1])
        recover(problem, keep, options)
        error = problem.error(keep)
    else:
        keep, error = _grow(problem, scores, floor, options)
    return Layer(
        keep=tuple(keep),
        scores=tuple(float(f"{s:.6g}") for s in scores),
        error=float(f"{error:.6g}"),
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


def settings_of(options: Any, **more: object) -> dict[str, object]:
    """Everything that decides a search's result, for `SearchState`; `options` is a dataclass."""
    return {**json.loads(json.dumps(asdict(options))), **more}
