"""Rewrites of a dense graph into a slim one, one per file, in the order in which they run."""

from __future__ import annotations

from slimdeploy.graph.passes.base import Pass, run
from slimdeploy.graph.passes.canonical_reshape import CanonicalReshape
from slimdeploy.graph.passes.drop_idle_masks import DropIdleMasks
from slimdeploy.graph.passes.fold_constants import FoldConstants
from slimdeploy.graph.passes.lazy_broadcast import LazyBroadcast
from slimdeploy.graph.passes.select_tokens import SelectTokens
from slimdeploy.graph.passes.split_projections import SplitProjections
from slimdeploy.graph.passes.tidy import Tidy
from slimdeploy.graph.passes.unflatten_tokens import UnflattenTokens

__all__ = [
    "CanonicalReshape",
    "DropIdleMasks",
    "FoldConstants",
    "LazyBroadcast",
    "Pass",
    "SelectTokens",
    "SplitProjections",
    "Tidy",
    "UnflattenTokens",
    "run",
]
