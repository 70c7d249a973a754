"""Patches chosen or merged per image, in static numbers (the paper's DPS); off unless asked for."""

from slimdeploy.slim.dynamic.merging import MergeVit
from slimdeploy.slim.dynamic.model import DynamicVit
from slimdeploy.slim.dynamic.of_schedule import slim_of
from slimdeploy.slim.dynamic.pipeline import DynamicRequest, dynamic_model, dynamic_steps
from slimdeploy.slim.dynamic.predictor import fit_predictor
from slimdeploy.slim.dynamic.refit import refit_dynamic
from slimdeploy.slim.dynamic.replay import replay, replay_merges
from slimdeploy.slim.dynamic.scores import choose_rows, patch_scores

__all__ = [
    "DynamicRequest",
    "DynamicVit",
    "MergeVit",
    "choose_rows",
    "dynamic_model",
    "dynamic_steps",
    "fit_predictor",
    "patch_scores",
    "refit_dynamic",
    "replay",
    "replay_merges",
    "slim_of",
]
