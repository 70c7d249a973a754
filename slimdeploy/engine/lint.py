"""What makes an engine slower than its graph deserves, seen in its kernels.

A finding is a fact about the kernels and no measured time: what it costs, `profile` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slimdeploy.engine.graph_facts import GraphFacts, is_selection
from slimdeploy.engine.layers import EngineLayer
from slimdeploy.engine.trt.parse import Attention

_MOVES = {"Move", "Resh", "Tran", "Cast", "Repl", "Conc", "Slic", "Gath", "Copy", "Squeeze"}
_MOVING_KINDS = ("reformat", "copy", "cast", "shuffle", "gather", "slice")
_MATRIX_KINDS = ("gemm", "correlation", "convolution", "matrix_multiply", "runtime_fusion")
_NARROW = ("float16", "bfloat16", "int8", "float8e4m3fn")


@dataclass(frozen=True)
class Finding:
    """One remark.

    Attributes:
        rule: "attention-not-fused", "data-movement", "selection-alone", "float32-island" or
            "layer-norm-missing".
        message: what was seen and what may help, in words.
        names: the kernels, blocks or nodes it is about.
    """

    rule: str
    message: str
    names: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)


def lint(
    layers: Sequence[EngineLayer], attentions: Sequence[Attention], facts: GraphFacts
) -> list[Finding]:
    """Findings of every rule; [] for an engine that does not tell its kernels."""
    if not tells_kernels(layers):
        return []
    kernels = [layer for layer in layers if layer.computes]
    found = [
        _attention(kernels, attentions),
        _selections(kernels),
        _data_movement(kernels, facts),
        _islands(kernels),
        _layer_norms(kernels, facts),
    ]
    return [finding for finding in found if finding is not None]


def tells_kernels(layers: Sequence[EngineLayer]) -> bool:
    """Whether an engine told of its kernels, without which there is nothing to find."""
    return any(layer.computes for layer in layers)


def summary(layers: Sequence[EngineLayer], attentions: Sequence[Attention]) -> dict[str, int]:
    """Counts that a table shows: kernels, fused attentions, kernels that only move data."""
    kernels = [layer for layer in layers if layer.computes]
    fused = sum(_is_fused(kernels, attention) for attention in attentions)
    moves = sum(moves_only(kernel) for kernel in kernels)
    alone = sum(selects_only(kernel) for kernel in kernels)
    return {
        "kernels": len(kernels),
        "blocks": len(attentions),
        "fused_attentions": fused,
        "data_movement": moves,
        "selections_alone": alone,
    }


def moves_only(layer: EngineLayer) -> bool:
    """Whether a kernel computes nothing, and only copies, casts or reorders."""
    operators = set(layer.operators)
    return operators <= _MOVES if operators else layer.kind.lower() in _MOVING_KINDS


def selects_only(layer: EngineLayer) -> bool:
    """Whether a kernel is there for a selection of tokens and for nothing else."""
    selects = [is_selection(node) for node in layer.nodes]
    picks = bool({"Gath", "Slic"} & set(layer.operators)) or layer.kind.lower() == "gather"
    return any(selects) and (all(selects) or (picks and moves_only(layer)))


def _is_fused(kernels: Sequence[EngineLayer], attention: Attention) -> bool:
    return any(kernel.is_attention and attention.node in kernel.nodes for kernel in kernels)


def _attention(kernels: Sequence[EngineLayer], attentions: Sequence[Attention]) -> Finding | None:
    blocks = [n for n, a in enumerate(attentions, 1) if not _is_fused(kernels, a)]
    if not blocks:
        return None
    softmaxes = {attentions[number - 1].node for number in blocks}
    types = {t.dtype for k in kernels if softmaxes & set(k.nodes) for t in k.inputs}
    remedy = (
        "in float32 it never is: quantize --precision fp16 or bf16"
        if types & {"float32"} and not types & set(_NARROW)
        else "compare with the dense engine, and with quantize --precision fp16 alone"
    )
    which = f"{len(blocks)} of {len(attentions)}"
    message = f"blocks whose attention is not one kernel: {which}; {remedy}"
    return Finding("attention-not-fused", message, tuple(f"block {n}" for n in blocks))


def _selections(kernels: Sequence[EngineLayer]) -> Finding | None:
    alone = [kernel.name for kernel in kernels if selects_only(kernel)]
    if not alone:
        return None
    message = (
        f"kernels that only select tokens, fused with no neighbour: {len(alone)}; "
        "positions that are static can be written otherwise: export --select slice"
    )
    return Finding("selection-alone", message, tuple(alone))


def _data_movement(kernels: Sequence[EngineLayer], facts: GraphFacts) -> Finding | None:
    """Copies, casts and reformats between kernels; selections have a rule of their own.

    What reads the images or writes the result is not between kernels, and someone has to do it.
    """
    ends = set(facts.ends)
    moving = [
        k
        for k in kernels
        if moves_only(k)
        and not selects_only(k)
        and not ends & {tensor.name for tensor in (*k.inputs, *k.outputs)}
    ]
    if not moving:
        return None
    casts = sum("Cast" in kernel.operators for kernel in moving)
    message = f"kernels that only move data: {len(moving)}, of which cast: {casts}"
    return Finding("data-movement", message, tuple(kernel.name for kernel in moving))


def _islands(kernels: Sequence[EngineLayer]) -> Finding | None:
    """Matrix products in float32 within an engine of a narrower type."""
    matrices = [k for k in kernels if k.kind.lower() in _MATRIX_KINDS or k.is_attention]
    if not any(t.dtype in _NARROW for k in matrices for t in k.inputs):
        return None
    wide = [k for k in matrices if k.inputs and all(t.dtype == "float32" for t in k.inputs)]
    if not wide:
        return None
    message = f"matrix products in float32: {len(wide)} of {len(matrices)}"
    return Finding("float32-island", message, tuple(kernel.name for kernel in wide))


def _layer_norms(kernels: Sequence[EngineLayer], facts: GraphFacts) -> Finding | None:
    computed = {node for kernel in kernels for node in kernel.nodes}
    missing = [name for name in facts.layer_norms if name and name not in computed]
    if not missing:
        return None
    message = (
        f"the graph has {len(facts.layer_norms)} LayerNormalizations, the engine "
        f"{len(facts.layer_norms) - len(missing)}: compare outputs before you trust it"
    )
    return Finding("layer-norm-missing", message, tuple(missing))
