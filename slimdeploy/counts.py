"""How many tokens each layer keeps, for a budget of MACs: a shape with one free parameter.

`geometric`  n_l = N·r^l              falls by the same share in every layer
`early`      n_l = N·r^√l             falls most in the first layers, and keeps more in the last
`earlier`    n_l = N·r^(l^¼)          still more so
`linear`     n_l = N·(1 - 3(1-r)·(l-1)/(L-1)), at least 0: the pyramid of most papers
`step`       four levels: all tokens, then r of the last level from L/4, L/2 and 3L/4 on
`even`       n_l = r·N                the paper's Table 3 control

`slim --shape auto` tries the first three and takes the one after which the model is closest to the
dense one on images held out (`best_shape`).

The last layer keeps exactly what the head reads; where the head pools over tokens, it follows the
shape like any other. Counts include prefix tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

from slimdeploy.dynamic import PerImage, merge_problem
from slimdeploy.errors import InputError
from slimdeploy.macs import dense_macs, mac_reduction, model_macs
from slimdeploy.schedule import ModelGeometry

Shape = Literal["geometric", "early", "earlier", "linear", "step", "even"]
ShapeChoice = Literal["auto", "geometric", "early", "earlier", "linear", "step", "even"]

# Fraction of the patches that layer l of L keeps (l from 1) for a parameter r from 0 to 1.
_SHAPES: dict[Shape, Callable[[int, int, float], float]] = {
    "geometric": lambda layer, depth, r: r**layer,
    "early": lambda layer, depth, r: r ** math.sqrt(layer),
    "earlier": lambda layer, depth, r: r ** (layer**0.25),
    "linear": lambda layer, depth, r: max(0, 1 - 3 * (1 - r) * (layer - 1) / max(depth - 1, 1)),
    "step": lambda layer, depth, r: r ** ((layer - 1) * 4 // depth),
    "even": lambda layer, depth, r: r,
}


def counts_of_shape(
    model: ModelGeometry, shape: Shape, r: float, multiple_of: int = 1
) -> list[int]:
    """Tokens kept per layer (prefix included) for a shape with parameter r.

    Counts never rise, and `multiple_of` rounds all but the last layer's to the nearest multiple,
    which kernels that work on tiles reward.
    """
    prefix, fractions = len(model.prefix), _SHAPES[shape]
    counts: list[int] = []
    for layer in range(1, model.depth):
        wanted = prefix + model.patches * fractions(layer, model.depth, r)
        rounded = multiple_of * max(1, round(wanted / multiple_of))
        counts.append(min(max(rounded, _least(model)), counts[-1] if counts else model.tokens))
    return [*counts, _last(model, fractions(model.depth, model.depth, r), counts)]


def _least(model: ModelGeometry) -> int:
    return max(len(model.prefix) + bool(model.head_pools), len(model.head_reads), 1)


def _last(model: ModelGeometry, fraction: float, counts: list[int]) -> int:
    """What the last layer keeps: tokens that no one reads or pools over are of no use to it."""
    if not model.head_pools:
        return len(model.head_reads)
    read = len({*model.head_reads, *model.head_pools})
    before = counts[-1] if counts else model.tokens
    wanted = len(model.head_reads) + max(1, round(len(model.head_pools) * fraction))
    return min(wanted, before - (model.tokens - read))


def counts_for_budget(
    model: ModelGeometry,
    mac_reduction_wanted: float,
    shape: Shape = "geometric",
    multiple_of: int = 1,
) -> list[int]:
    """The mildest counts of a shape that save at least the wanted share of MACs.

    Raises:
        InputError: if the share is not between 0 and 1, or the shape cannot reach it.
    """
    if multiple_of < 1:
        raise InputError(f"--multiple-of {multiple_of}: must be at least 1")
    if not 0 <= mac_reduction_wanted < 1:
        raise InputError(
            f"--mac-reduction {mac_reduction_wanted}: must be at least 0 and below 1, as 0.46"
        )
    if shape not in get_args(Shape):
        raise InputError(f"--shape {shape}: not one of {', '.join(get_args(Shape))}")

    return _mildest(model, mac_reduction_wanted, 0.0, shape, multiple_of)


def counts_for_scoring(
    model: ModelGeometry, mac_reduction_wanted: float, shape: Shape, multiple_of: int = 1
) -> list[int]:
    """`counts_for_budget` less what it costs at most to score the patches of every layer.

    Raises:
        InputError: as `counts_for_budget`.
    """
    counts_for_budget(model, mac_reduction_wanted, shape, multiple_of)  # refuses what was asked for
    scoring = (model.depth - 1) * model.tokens * model.width / dense_macs(model).total
    return _mildest(model, mac_reduction_wanted, scoring, shape, multiple_of)


def counts_for_merging(
    model: ModelGeometry, mac_reduction_wanted: float, shape: Shape, multiple_of: int = 1
) -> list[int]:
    """`counts_for_budget` where patches are merged, what finding and adding them costs included.

    Raises:
        InputError: as `counts_for_budget`; and for counts of which a layer would have to merge more
            than every second patch.
    """
    counts_for_budget(model, mac_reduction_wanted, shape, multiple_of)  # refuses what was asked for

    def counts_of(tried: Shape) -> list[int]:
        return _mildest(model, mac_reduction_wanted, 0.0, tried, multiple_of, saved)

    def saved(counts: list[int]) -> float:
        return 1 - model_macs(model, counts, dynamic="merge").total / dense_macs(model).total

    def problem_of(counts: list[int]) -> str | None:
        return merge_problem(counts, model.tokens, len(model.prefix))

    counts = counts_of(shape)
    if problem := problem_of(counts):
        others = [other for other in get_args(Shape) if not _refused(counts_of, problem_of, other)]
        remedy = f"--shape {others[0]} spreads them" if others else "no shape can: save less"
        raise InputError(
            f"--mac-reduction {mac_reduction_wanted}, {shape} counts: {problem}; {remedy}"
        )
    return counts


def _refused(
    counts_of: Callable[[Shape], list[int]],
    problem_of: Callable[[list[int]], str | None],
    shape: Shape,
) -> bool:
    try:
        return problem_of(counts_of(shape)) is not None
    except InputError:
        return True


def counts_by_image(
    way: PerImage, model: ModelGeometry, wanted: float, shape: Shape, multiple_of: int = 1
) -> list[int]:
    """Tokens left per layer for a budget, where each image decides which, in that way.

    Raises:
        InputError: as `counts_for_scoring` and `counts_for_merging`; and where a layer before the
            last would keep registers, but no patch.
    """
    rule = counts_for_merging if way == "merge" else counts_for_scoring
    counts, prefix = rule(model, wanted, shape, multiple_of), len(model.prefix)
    bare = [layer for layer, count in enumerate(counts[:-1], 1) if count <= prefix]
    if bare and len(model.head_reads) != prefix:
        # Which prefix tokens such a layer keeps could not be told from those of the last.
        raise InputError(
            f"--shape {shape}: layer {bare[0]} would keep no patch at --mac-reduction {wanted}; "
            "take another shape, or save less"
        )
    return counts


def _mildest(
    model: ModelGeometry,
    wanted: float,
    spent: float,
    shape: Shape,
    multiple_of: int,
    saves: Callable[[list[int]], float] | None = None,
) -> list[int]:
    """The mildest counts that save the wanted share of MACs, and what is spent beside them.

    `saves` says what counts save, if not what they do where other tokens are dropped.
    """

    def saved(r: float) -> float:
        counts = counts_of_shape(model, shape, r, multiple_of)
        return (saves(counts) if saves else mac_reduction(model, counts)) - spent

    if saved(0.0) < wanted:
        rounded = f" that are multiples of {multiple_of}" * (multiple_of > 1)
        scored = f", less {spent:.2g} for scoring the patches," * (spent > 0)
        raise InputError(
            f"--mac-reduction {wanted}: {shape} counts{rounded}{scored} reach at most "
            f"{math.floor(saved(0.0) * 1000) / 1000} on {model.name}"
        )
    low, high = 0.0, 1.0
    if saved(high) >= wanted:
        return counts_of_shape(model, shape, high, multiple_of)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if saved(middle) >= wanted else (low, middle)
    return counts_of_shape(model, shape, low, multiple_of)


TRIED: tuple[Shape, ...] = ("geometric", "early", "earlier")
"""What `auto` chooses from; measured: none of them is best for every model and budget."""


def reachable_shapes(counts: Callable[[Shape], object]) -> list[Shape]:
    """Those of `TRIED` whose counts can be had.

    Args:
        counts: makes a shape's counts, or raises `InputError`.

    Raises:
        InputError: the first one's, if none can.
    """
    found: list[Shape] = []
    refused: list[InputError] = []
    for shape in TRIED:
        try:
            counts(shape)
        except InputError as error:
            refused.append(error)
        else:
            found.append(shape)
    if not found:
        raise refused[0]
    return found


def best_shape(
    counts: Callable[[Shape], object],
    error: Callable[[Shape], float],
    progress: Callable[[str], None] | None = None,
) -> Shape:
    """The shape of `TRIED` with the least error, of those that are within reach.

    Args:
        counts: as for `reachable_shapes`.
        error: slims by that shape and says how far the result is from the dense model's.
        progress: called with a line for each shape.

    Raises:
        InputError: as `reachable_shapes`.
    """
    shapes, found = reachable_shapes(counts), dict[Shape, float]()
    for shape in TRIED:
        said = "out of reach"
        if shape in shapes:
            found[shape] = error(shape)
            said = f"held-out error {found[shape]:.4f}"
        if progress is not None:
            progress(f"{shape} counts: {said}")
    return min(shapes, key=found.__getitem__)
