"""The slim model of a schedule, whatever its kind."""

from __future__ import annotations

from collections.abc import Sequence

from slimdeploy.dynamic import Dynamic
from slimdeploy.errors import InputError
from slimdeploy.schedule import KeepSchedule
from slimdeploy.slim.dynamic.merging import MergeVit
from slimdeploy.slim.dynamic.model import DynamicVit
from slimdeploy.slim.model import SlimVit
from slimdeploy.slim.types import Vit


def slim_of(dense: Vit, schedule: KeepSchedule) -> SlimVit:
    """The slim model that a schedule describes, static or dynamic; it shares `dense`'s parameters.

    Raises:
        InputError: if layers without patches keep different prefix tokens.
    """
    if schedule.dynamic is None:
        return SlimVit(dense, schedule.keep)
    prefix = len(schedule.model.prefix)
    last = {ids for layer in schedule.layers if max(ids := layer.keep) < prefix}
    if len(last) > 1:
        raise InputError("keep schedule: layers without patches keep different prefix tokens")
    read = next(iter(last), schedule.model.head_reads)
    return by_image(dense, schedule.counts, schedule.dynamic, read)


def by_image(
    dense: Vit, counts: Sequence[int], dynamic: Dynamic, read: Sequence[int]
) -> DynamicVit | MergeVit:
    """The model whose images decide as `dynamic` says; arguments as those of `DynamicVit`."""
    if dynamic.merges:
        return MergeVit(dense, counts, read)
    return DynamicVit(dense, counts, dynamic, read)
