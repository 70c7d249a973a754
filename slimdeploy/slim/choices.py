"""Names a user chooses from; without torch, so that `--help` knows them on any machine."""

from typing import Final, Literal

ImpactName = Literal[
    "cover", "joint", "path", "attention", "class-attention", "grid", "centre", "random"
]
DEFAULT_IMPACT: Final = "cover"
"""Of `slim` and `sweep`, from a timm model and from a file."""
Reconstruct = Literal["refit", "gradient", "none"]
Strength = float | Literal["auto"]
"""Of the refit's ridge: a number for all layers, or chosen for each."""
Exporter = Literal["dynamo", "torchscript"]

SEARCH_IMAGES = 64
"""Calibration images that a search looks at, if not told otherwise."""
