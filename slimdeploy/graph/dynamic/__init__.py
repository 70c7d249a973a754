"""Tokens chosen or merged per image, where the static form has constant indices; static shapes.

plan                         what a dynamic schedule asks for; what a graph records of it
selection                    which passes that takes
choose_tokens, emit_scores   TopK of a score
merge_tokens, emit_merges    the means of the most similar patches
"""

from slimdeploy.graph.dynamic.choose_tokens import ChooseTokens
from slimdeploy.graph.dynamic.merge_tokens import MergeTokens
from slimdeploy.graph.dynamic.plan import (
    ChoicePlan,
    MergeNames,
    choice_names,
    merge_names,
    record_choices,
    record_merges,
)
from slimdeploy.graph.dynamic.selection import Decisions, dynamic_selection

__all__ = [
    "ChoicePlan",
    "ChooseTokens",
    "Decisions",
    "MergeNames",
    "MergeTokens",
    "choice_names",
    "dynamic_selection",
    "merge_names",
    "record_choices",
    "record_merges",
]
