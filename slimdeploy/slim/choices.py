"""Names a user chooses from; without torch, so that `--help` knows them on any machine."""

from typing import Literal

ImpactName = Literal[
    "cover", "joint", "path", "attention", "class-attention", "grid", "centre", "random"
]
Reconstruct = Literal["refit", "gradient", "none"]
Exporter = Literal["dynamo", "torchscript"]
