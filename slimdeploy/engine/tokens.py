"""How many tokens each block computes, read off an engine's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slimdeploy.engine.layers import EngineLayer
from slimdeploy.engine.trt.parse import Attention
from slimdeploy.errors import GateError, InputError


def engine_tokens(
    layers: Sequence[EngineLayer], attentions: Sequence[Attention]
) -> list[Attention] | None:
    """Each block's token counts from the shapes that its attention kernels work on.

    A kernel for a single query flattens its operands: its keys are then the network's.

    Returns:
        One for each of `attentions`, in its order; None if a block's kernel is not found.
    """
    found = [_read(layers, attention) for attention in attentions]
    known = [attention for attention in found if attention is not None]
    return known if found and len(known) == len(found) else None


def _read(layers: Sequence[EngineLayer], attention: Attention) -> Attention | None:
    node = attention.node
    for layer in reversed(layers):  # unfused, the last kernel of a softmax gives its result
        if node not in layer.nodes or not layer.outputs:
            continue
        out = layer.outputs[0].shape
        if layer.is_attention and len(out) >= 2:
            return Attention(node, out[-2], _keys(layer) or attention.keys)
        if layer.kind == "kgen" and len(out) >= 3:
            return Attention(node, out[-2], out[-1])
    return None


def _keys(layer: EngineLayer) -> int | None:
    """From softmax(QK)V's operands: V is [..., keys, head width], as wide as the result."""
    width = layer.outputs[0].shape[-1]
    values = [tensor.shape for tensor in layer.inputs if tensor.shape[-1:] == (width,)]
    return values[-1][-2] if values and len(values[-1]) >= 3 else None


def of_blocks(
    model: Path, attentions: Sequence[Attention], expected: Sequence[int] | None
) -> tuple[Attention, ...]:
    """Those of the transformer's blocks: a head that pools by attention has one of its own.

    Args:
        expected: token counts of the blocks, where they are known: their number tells whether there
            is anything to leave out.
    """
    if not expected or len(attentions) <= len(expected):
        return tuple(attentions)
    from slimdeploy.graph.files.storage import load_model
    from slimdeploy.graph.slimming import prepared
    from slimdeploy.graph.tokens.blocks import find_blocks

    blocks, _ = find_blocks(prepared(load_model(model)))
    names = {block.anchor.name for block in blocks}
    return tuple(x for x in attentions if x.node in names) or tuple(attentions)


def graph_tokens(model: Path) -> tuple[tuple[Attention, ...], bool]:
    """Each block's token counts in an ONNX file, and whether these are all that it has.

    ((), False) for a graph that is no vision transformer.
    """
    from slimdeploy.graph.files.storage import load_model
    from slimdeploy.graph.slimming import prepared
    from slimdeploy.graph.tokens.blocks import find_blocks

    try:
        blocks, misses = find_blocks(prepared(load_model(model)))
    except InputError:
        return (), False
    return tuple(Attention(b.anchor.name, b.queries, b.keys) for b in blocks), not misses


def check_tokens(source: str, found: Sequence[int], expected: Sequence[int], by: str) -> None:
    """Compare the queries of each block with what a schedule or manifest says.

    Raises:
        InputError: if it is for a model of another depth.
        GateError: naming the first block that differs.
    """
    if len(found) != len(expected):
        raise InputError(
            f"{by}: is for a model of {len(expected)} blocks, {source} has {len(found)}; give the "
            "schedule that this file was exported with"
        )
    for number, (have, want) in enumerate(zip(found, expected, strict=True), 1):
        if have != want:
            raise GateError(
                f"{source}: block {number} computes {have} tokens, {by} says {want}; nothing was "
                "written: export it again with this schedule"
            )
