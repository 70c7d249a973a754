"""The graph stage: drop tokens from a dense ONNX vision transformer, by data flow alone.

Code map:
    slimming        the stage as three functions; options says what they may be asked for
    files/          from a model file to a graph and back
    work            the graph under work
    shapes          concrete shapes and constant values of all tensors; evaluate runs one node
    axes/           what each operator does to an axis: one table
    anatomy/        grid, prefix tokens, head and widths, read from the graph itself
    tokens/         transformer blocks, and which tokens each tensor holds and is asked for
    selection/      how a selection of tokens is written, in which order, and recognised
    dynamic/        tokens chosen or merged per image; by_image says whether a graph allows it
    forms           which passes the options on selection and on inputs and outputs ask for
    passes/         the rewrites in order, and their runner; reshapes says what a Reshape must
    optimize/       the rewrites of `--optimize`, which compute the same with less work
    postconditions  what must hold of the result; forbid and outputs are parts of it
    masked/         the dense graph with dropped tokens masked: what the result is judged by
    probes          the tensors that mark the blocks of any file, by their names in it
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slimdeploy.graph.options import GraphOptions

if TYPE_CHECKING:
    from slimdeploy.graph.postconditions import BlockCount, check_graph
    from slimdeploy.graph.slimming import SlimGraph, dense_graph, lossless_graph, slim_graph

__all__ = [
    "BlockCount",
    "GraphOptions",
    "SlimGraph",
    "check_graph",
    "dense_graph",
    "lossless_graph",
    "slim_graph",
]

_CHECKS = ("BlockCount", "check_graph")


def __getattr__(name: str) -> Any:
    # `--help` needs the options alone: the rest, which takes a quarter of a second, is loaded when
    # it is asked for.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "postconditions" if name in _CHECKS else "slimming"
    return getattr(import_module(f"{__name__}.{module}"), name)
