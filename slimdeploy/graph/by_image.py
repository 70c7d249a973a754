"""Whether each image could decide about its tokens in a graph: found out by trying."""

from __future__ import annotations

import onnx

from slimdeploy.dynamic import Dynamic, PerImage, choosing_layers
from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph.dynamic import ChoicePlan
from slimdeploy.graph.slimming import slim_graph
from slimdeploy.schedule import ModelGeometry


def refusals(
    model: onnx.ModelProto, geometry: ModelGeometry, source: str
) -> dict[PerImage, str | None]:
    """For `merge` and `predictor` why `model` does not allow it, or None.

    Each is written into the graph in its mildest form: one token less, from the first block on.
    Choosing asks for less than merging does, and is tried only where merging is refused.

    Args:
        model: a dense graph whose blocks are those of `geometry`; it is left as it is.
        source: what messages call it.
    """
    merge = _refusal(model, geometry, "merge", source)
    predictor = None if merge is None else _refusal(model, geometry, "predictor", source)
    return {"merge": merge, "predictor": predictor}


def _refusal(
    model: onnx.ModelProto, geometry: ModelGeometry, way: PerImage, source: str
) -> str | None:
    if geometry.head_pools:
        return f"its head pools over {len(geometry.head_pools)} tokens"
    prefix, reads = len(geometry.prefix), geometry.head_reads
    if reads[-1] >= prefix:
        return "its head reads single patches"
    counts = (*[geometry.tokens - 1] * (geometry.depth - 1), len(reads))
    weights: list[tuple[float, ...] | None] = []
    if way == "predictor":
        chooses = choosing_layers(counts, geometry.tokens, prefix)
        weights = [(0.0,) * geometry.width if chosen else None for chosen in chooses]
    dynamic = Dynamic(scorer=way, weights=tuple(weights))
    plan = ChoicePlan(dynamic, counts, geometry.tokens, prefix, reads)
    try:
        slim_graph(model, plan.places, source=source, plan=plan)
    except (GraphError, InputError) as error:
        return str(error).removeprefix(f"{source}: ")
    return None
