"""Estimators of a token's impact behind one interface, chosen by name (`slim --impact NAME`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from slimdeploy.errors import InputError
from slimdeploy.slim.choices import ImpactName
from slimdeploy.slim.impact.attention import ClassAttentionImpact, OwnAttentionImpact
from slimdeploy.slim.impact.base import Impact
from slimdeploy.slim.impact.cover import CoverImpact
from slimdeploy.slim.impact.fixed import FixedImpact
from slimdeploy.slim.impact.joint import JointImpact
from slimdeploy.slim.impact.path import PathImpact

_IMPACTS: dict[ImpactName, Callable[[int], Impact]] = {
    "joint": lambda seed: JointImpact(seed=seed),
    "cover": lambda seed: CoverImpact(),
    "path": lambda seed: PathImpact(),
    "attention": lambda seed: OwnAttentionImpact(),
    "class-attention": lambda seed: ClassAttentionImpact(),
    "grid": lambda seed: FixedImpact("grid"),
    "centre": lambda seed: FixedImpact("centre"),
    "random": lambda seed: FixedImpact("random", seed),
}


def make_impact(name: ImpactName, seed: int = 0) -> Impact:
    """The estimator of that name.

    Raises:
        InputError: for an unknown name.
    """
    if name not in _IMPACTS:
        raise InputError(f"--impact {name}: not one of {', '.join(get_args(ImpactName))}")
    return _IMPACTS[name](seed)


__all__ = ["Impact", "ImpactName", "make_impact"]
