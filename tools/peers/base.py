"""What the peers share: a timm ViT that loses tokens between a block's attention and its MLP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slimdeploy.slim.model import SlimVit, embed, mlp_half, slim_block
from slimdeploy.slim.types import Vit, VitBlock

READ = torch.tensor([0])
"""What the head reads: the class token."""


class PeerVit(SlimVit):
    """A timm `VisionTransformer` whose blocks drop or merge tokens; parameters are shared.

    Args:
        dense: the model.
        mlp_counts: per block the tokens that its MLP computes; all of them attend.
    """

    def __init__(self, dense: Vit, mlp_counts: Sequence[int]) -> None:
        tokens = dense.patch_embed.num_patches + dense.num_prefix_tokens
        super().__init__(dense, [range(tokens)] * len(mlp_counts))
        if dense.num_prefix_tokens != 1:
            raise ValueError("the peers are written for one class token and no registers")
        self.mlp_counts = list(mlp_counts)

    def forward_features(self, images: Tensor) -> Tensor:
        """The class token after the last block, normalised, [B, 1, D], from [B, C, H, W]."""
        x = embed(self.dense, images)
        self.begin(x)
        *blocks, last = self.dense.blocks
        for block, count in zip(blocks, self.mlp_counts, strict=False):
            x = mlp_half(block, self.attend(block, x, count))
        return self.dense.norm(self.finish(last, x))

    def begin(self, x: Tensor) -> None:
        """Forget the images before; `x` [B, N, D] are the tokens of the next ones."""

    def attend(self, block: VitBlock, x: Tensor, count: int) -> Tensor:
        """The stream after attention, reduced to `count` tokens: [B, k, D] -> [B, count, D]."""
        raise NotImplementedError

    def finish(self, block: VitBlock, x: Tensor) -> Tensor:
        """The last block, for the class token only: [B, k, D] -> [B, 1, D]."""
        return slim_block(block, x, READ.to(x.device))


def residual(block: VitBlock, x: Tensor, mixed: Tensor) -> Tensor:
    """Add an attention's heads, [B, heads, k, d], to the stream [B, k, D]."""
    attn = block.attn
    merged = attn.proj_drop(attn.proj(attn.norm(mixed.transpose(1, 2).flatten(2))))
    return x + block.drop_path1(block.ls1(merged))


def mix(block: VitBlock, weights: Tensor, v: Tensor) -> Tensor:
    """Attention weights [B, heads, q, k] applied to values [B, heads, k, d]."""
    dropped: Tensor = nn.functional.dropout(
        weights, block.attn.attn_drop.p, block.attn.attn_drop.training
    )
    return dropped @ v
