"""What a dynamic schedule asks of a graph, and what the graph says of its choices."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx

from slimdeploy.dynamic import Dynamic, choosing_layers
from slimdeploy.graph.axes import Ids
from slimdeploy.schedule import KeepSchedule

CHOICES_KEY = "slimdeploy.dynamic_choices"
"""The metadata of a model that names, per block, the tensor of rows it chooses; null for none."""
MERGES_KEY = "slimdeploy.dynamic_merges"
"""The metadata of a model that names, per block, the tensors of what it merges; null for none."""


@dataclass(frozen=True)
class ChoicePlan:
    """How many tokens each block keeps, and what scores them.

    Attributes:
        dynamic: the scorer.
        counts: tokens kept per block, prefix included.
        tokens: of the dense model.
        prefix: how many of them precede the patches; they always stay.
        read: ids of the prefix tokens that blocks without patches keep.
    """

    dynamic: Dynamic
    counts: tuple[int, ...]
    tokens: int
    prefix: int
    read: Ids

    @classmethod
    def of(cls, schedule: KeepSchedule) -> ChoicePlan | None:
        """What `schedule` asks for; None for a static one."""
        if schedule.dynamic is None:
            return None
        model = schedule.model
        read = next((ids.keep for ids in schedule.layers if max(ids.keep) < len(model.prefix)), ())
        counts = tuple(schedule.counts)
        return cls(schedule.dynamic, counts, model.tokens, len(model.prefix), read)

    @property
    def choices(self) -> int:
        """How many blocks choose."""
        return sum(self.chooses)

    @property
    def operators(self) -> Counter[str]:
        """How many of the operators that choose at run time the graph gets."""
        gathers, merged = 0, 0
        for chosen in self.chooses:
            if chosen and self.dynamic.merges:  # pairs, moved and stayed tokens, and their sizes
                gathers, merged = gathers + (3 if not merged else 5), merged + 1
            elif chosen:  # the stream, and the queries
                gathers += 2
        return Counter({"TopK": self.choices, "GatherND": gathers})

    @property
    def keys(self) -> list[int]:
        """Tokens that the queries of each block attend to."""
        held = [self.tokens, *self.counts[:-1]]
        if not self.dynamic.merges:
            return held
        pairs = zip(held, self.counts, self.chooses, strict=True)
        return [count if chooses else before for before, count, chooses in pairs]

    @property
    def chooses(self) -> list[bool]:
        """Per block whether it chooses patches."""
        return choosing_layers(self.counts, self.tokens, self.prefix)

    @property
    def places(self) -> list[Ids]:
        """Ids that stand for the rows of each block: its tokens have no ids known beforehand.

        Nested, and of the right number, so that all that follows from counts can be planned.
        """
        return [tuple(range(n)) if n > self.prefix else self.read for n in self.counts]


class MergeNames(NamedTuple):
    """Tensors of one merging: see `slimdeploy.graph.dynamic.emit_merges.Merge`."""

    order: str
    partner: str
    size: str


def record_merges(model: onnx.ModelProto, names: Sequence[MergeNames | None]) -> None:
    """Write into `model` which tensors hold what is merged, block by block."""
    model.metadata_props.add(key=MERGES_KEY, value=json.dumps(names))


def merge_names(model: onnx.ModelProto) -> list[MergeNames | None] | None:
    """The tensors that say what `model` merges; None for a model that merges nothing."""
    found = [entry.value for entry in model.metadata_props if entry.key == MERGES_KEY]
    if not found:
        return None
    return [None if names is None else MergeNames(*names) for names in json.loads(found[0])]


def record_choices(model: onnx.ModelProto, names: list[str | None]) -> None:
    """Write into `model` which tensors hold the chosen rows, [B, count] per block."""
    model.metadata_props.add(key=CHOICES_KEY, value=json.dumps(names))


def choice_names(model: onnx.ModelProto) -> list[str | None] | None:
    """The tensors that hold the rows which `model` chooses; None for a static model."""
    found = [entry.value for entry in model.metadata_props if entry.key == CHOICES_KEY]
    return json.loads(found[0]) if found else None
