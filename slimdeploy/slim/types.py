"""Names for timm's modules, whose attributes a type checker cannot know."""

from __future__ import annotations

from typing import Any, TypeAlias

Vit: TypeAlias = Any
"""A `timm.models.vision_transformer.VisionTransformer`."""

VitBlock: TypeAlias = Any
"""A `timm.models.vision_transformer.Block`."""

VitAttention: TypeAlias = Any
"""A `timm.layers.Attention`."""
