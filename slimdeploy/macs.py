"""Multiply-accumulates (MACs) of a vision transformer, dense or slimmed.

One MAC is one multiplication with its addition; papers that say "FLOPs" for DeiT mean MACs.
Counted: patch embedding, the matrix products of attention and MLP, the head. Not counted, as in
the papers: normalisation, softmax, activations, biases, additions.

With q = |S_l| queries and k = |S_{l-1}| keys, a layer of width D and MLP width M costs
q·D² (Q) + 2k·D² (K, V) + 2q·k·D (scores and mix) + q·D² (projection) + 2q·D·M (MLP): the compact
form, in which keys and values exist only for tokens that the layer before kept. (The paper
counts K and V over all N zero-padded rows and so reports about 6 points less.)

A dynamic schedule's layer scores k tokens of D channels beside that: one MAC per channel. One that
merges has as many keys as queries; of the k patches that enter it a = ⌈k/2⌉ are compared with the
b = ⌊k/2⌋ others, a·b·D, and those that merge, r of them, are added up by a product, b·r·D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from slimdeploy.dynamic import PerImage, choosing_layers
from slimdeploy.schedule import KeepSchedule, ModelGeometry


@dataclass(frozen=True)
class LayerMacs:
    """One layer's MACs for one image."""

    queries: int
    keys: int
    attention: int
    mlp: int
    scorer: int = 0

    @property
    def total(self) -> int:
        return self.attention + self.mlp + self.scorer


@dataclass(frozen=True)
class ModelMacs:
    """A model's MACs for one image."""

    embed: int
    layers: tuple[LayerMacs, ...]
    head: int

    @property
    def total(self) -> int:
        return self.embed + sum(layer.total for layer in self.layers) + self.head


def layer_macs(model: ModelGeometry, queries: int, keys: int) -> LayerMacs:
    """MACs of one layer with so many queries and keys."""
    d = model.width
    attention = 2 * queries * d * d + 2 * keys * d * d + 2 * queries * keys * d
    return LayerMacs(queries, keys, attention, 2 * queries * d * model.mlp_width)


def model_macs(
    model: ModelGeometry, counts: Sequence[int], *, dynamic: PerImage | None = None
) -> ModelMacs:
    """MACs of the model when layer l keeps counts[l] tokens (prefix included).

    With `dynamic`, those of choosing or merging the tokens too.
    """
    channels, prefix = model.input_size[0], len(model.prefix)
    embed = model.patches * model.patch_size[0] * model.patch_size[1] * channels * model.width
    held, layers = [model.tokens, *counts[:-1]], list[LayerMacs]()
    chooses = choosing_layers(counts, model.tokens, prefix)
    for count, before, chosen in zip(counts, held, chooses, strict=True):
        keys, scorer = before, 0
        if chosen and dynamic == "merge":
            keys, scorer = count, _merging(before - prefix, before - count) * model.width
        elif chosen and dynamic:
            scorer = before * model.width
        layers.append(replace(layer_macs(model, count, keys), scorer=scorer))
    rows = max(len(model.head_reads), 1)  # a pooled row is read once
    return ModelMacs(embed, tuple(layers), rows * model.width * model.num_classes)


def _merging(patches: int, gone: int) -> int:
    """Products of tokens that a layer takes to find and merge `gone` of its patches."""
    others = patches // 2
    return (patches - others) * others + others * gone


def dense_macs(model: ModelGeometry) -> ModelMacs:
    """MACs of the model with nothing dropped."""
    return model_macs(model, [model.tokens] * model.depth)


def mac_reduction(model: ModelGeometry, counts: Sequence[int]) -> float:
    """Share of the dense model's MACs that these counts save, 0 to 1."""
    return 1 - model_macs(model, counts).total / dense_macs(model).total


def schedule_macs(schedule: KeepSchedule) -> ModelMacs:
    """MACs of the model that a schedule describes."""
    way = None if schedule.dynamic is None else schedule.dynamic.scorer
    return model_macs(schedule.model, schedule.counts, dynamic=way)
