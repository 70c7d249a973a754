"""The residual stream inside a model, read while it runs, to compare tokens at several depths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from slimdeploy.errors import InputError
from slimdeploy.schedule import KeepSchedule
from slimdeploy.slim.types import Vit


@contextmanager
def recorded_streams(model: Vit, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """What the body's forward pass has after each of `layers` (from 1), [B, tokens held, D].

    Read where the next block normalises it, so it serves dense and slim models alike.
    """
    found: list[Tensor] = []

    def record(_: Any, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])

    hooks = [model.blocks[layer].norm1.register_forward_pre_hook(record) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def compared_layers(schedule: KeepSchedule, asked: Sequence[int]) -> tuple[int, ...]:
    """Layers whose kept tokens are compared, ascending: the asked ones, else at each quarter.

    Raises:
        InputError: for a layer that has none after it, or tokens that each image chooses anew.
    """
    depth = len(schedule.layers)
    if schedule.dynamic is not None:
        raise InputError("--token-weight: the schedule chooses each image's patches anew; leave 0")
    quarters = {depth * quarter // 4 for quarter in (1, 2, 3)} - {0}
    layers = sorted(set(asked) or quarters)
    for layer in layers:
        if not 1 <= layer < depth:
            raise InputError(f"--token-layers {layer}: must be from 1 to {depth - 1}")
    return tuple(layers)
