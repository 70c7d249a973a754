"""Per-image choice of tokens: TopK of a score in place of constant indices, all shapes static."""

from slimdeploy.graph.dynamic.choose_tokens import ChooseTokens, dynamic_selection
from slimdeploy.graph.dynamic.plan import ChoicePlan, choice_names, record_choices

__all__ = ["ChoicePlan", "ChooseTokens", "choice_names", "dynamic_selection", "record_choices"]
