"""The slim vision transformer: a timm ViT that computes each layer for the kept tokens only.

In block l, queries, attention output, projection, residual and MLP are computed for S_l; keys and
values come from S_{l-1} (all tokens for l = 1). The paper masks rows with zeros instead (Eq. 2 and
footnote 1); here dropped tokens are gone, which is what the exported graph computes too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimdeploy.slim.types import Vit, VitAttention, VitBlock


class SlimVit(nn.Module):
    """A timm `VisionTransformer` restricted to kept tokens. Parameters are shared with `dense`.

    With every token kept it computes what `dense` does, up to float rounding; also with only the
    last layer cut to what the head reads (lossless mode).

    Args:
        dense: the model; its parameters are used, not copied.
        keep: per block the global ids of the kept tokens, ascending and nested.

    Example:
        >>> slim = SlimVit(timm.create_model("vit_tiny_patch16_224"), [range(197)] * 11 + [[0]])
        >>> slim(images)  # [B, 3, 224, 224] -> logits [B, classes]
    """

    def __init__(self, dense: Vit, keep: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.dense = dense
        tokens = dense.patch_embed.num_patches + dense.num_prefix_tokens
        for block, rows in enumerate(local_rows(keep, tokens)):
            self.register_buffer(f"rows{block}", rows, persistent=False)
        # timm's training tasks read these of any model they are given.
        self.num_classes, self.in_chans = dense.num_classes, dense.patch_embed.proj.in_channels
        self.pretrained_cfg = dense.pretrained_cfg

    def forward_features(self, images: Tensor) -> Tensor:
        """Final normalised tokens that the last layer keeps, [B, |S_L|, D], from [B, C, H, W]."""
        x = embed(self.dense, images)
        for index, block in enumerate(self.dense.blocks):
            x = slim_block(block, x, getattr(self, f"rows{index}"))
        return self.dense.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [B, classes] from the last layer's tokens."""
        return self.dense.forward_head(x, pre_logits=pre_logits)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] from images [B, C, H, W]."""
        return self.forward_head(self.forward_features(images))


def local_rows(keep: Sequence[Sequence[int]], tokens: int) -> list[Tensor | None]:
    """`rows_among` for every block of a schedule."""
    before: list[Sequence[int]] = [range(tokens), *keep[:-1]]
    return [rows_among(ids, held) for ids, held in zip(keep, before, strict=True)]


def rows_among(wanted: Sequence[int], before: Sequence[int]) -> Tensor | None:
    """Where the `wanted` tokens stand among those of the layer `before`; None for all of them."""
    if len(wanted) == len(before):
        return None
    place = {token: index for index, token in enumerate(before)}
    return torch.tensor([place[token] for token in wanted])


def embed(model: Vit, images: Tensor) -> Tensor:
    """The token sequence that enters the first block, [B, N, D], from images [B, C, H, W]."""
    return model.norm_pre(model._pos_embed(model.patch_embed(images)))


def slim_block(
    block: VitBlock, x: Tensor, rows: Tensor | None, key_bias: Tensor | None = None
) -> Tensor:
    """One block for the tokens at `rows`: [B, k, D] -> [B, q, D]. `rows` None keeps all."""
    return mlp_half(block, attention_half(block, x, rows, key_bias))


def attention_half(
    block: VitBlock, x: Tensor, rows: Tensor | None, key_bias: Tensor | None = None
) -> Tensor:
    """Residual stream after a block's attention, at the kept tokens: [B, k, D] -> [B, q, D]."""
    mixed = project(block.attn, attention_mix(block, x, rows, key_bias))
    return select(x, rows) + block.drop_path1(block.ls1(mixed))


def mlp_half(block: VitBlock, x: Tensor) -> Tensor:
    """Residual stream after a block's MLP: [B, q, D] -> [B, q, D]."""
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def select(x: Tensor, rows: Tensor | None) -> Tensor:
    """Tokens at `rows` of [B, k, D]: [q] the same for every image, [B, q] for each its own.

    None keeps all of them.
    """
    if rows is None or rows.ndim == 1:
        return x if rows is None else x.index_select(1, rows)
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def attention_mix(
    block: VitBlock, x: Tensor, rows: Tensor | None, key_bias: Tensor | None = None
) -> Tensor:
    """What the output projection reads: heads concatenated, [B, k, D] -> [B, q, heads·d].

    `key_bias` [B, k] is added to the logits of each key: a gate for measuring its influence, or how
    many tokens it stands for.
    """
    attn, h = block.attn, block.norm1(x)
    q, k, v = queries_keys_values(attn, h, rows)
    dropout = attn.attn_drop.p if attn.training else 0.0
    mask = None if key_bias is None else key_bias[:, None, None, :]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    mixed = attn.norm(mixed.transpose(1, 2).flatten(2))
    if attn.gate is not None:
        mixed = mixed * attn.gate(select(h, rows)).sigmoid()
    return mixed


def project(attn: VitAttention, mixed: Tensor) -> Tensor:
    """The attention's output projection, [B, q, heads·d] -> [B, q, D]."""
    return attn.proj_drop(attn.proj(mixed))


def queries_keys_values(
    attn: VitAttention, h: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Q at `rows` and K, V everywhere, each [B, heads, tokens, d], from normalised h [B, k, D]."""
    size = attn.attn_dim
    weight, bias = attn.qkv.weight, attn.qkv.bias
    q = F.linear(select(h, rows), weight[:size], None if bias is None else bias[:size])
    kv = F.linear(h, weight[size:], None if bias is None else bias[size:])
    q, k, v = (
        t.unflatten(-1, (attn.num_heads, attn.head_dim)).transpose(1, 2)
        for t in (q, kv[..., :size], kv[..., size:])
    )
    return attn.q_norm(q), attn.k_norm(k), v


def attention_map(block: VitBlock, x: Tensor, rows: Tensor | None) -> Tensor:
    """P = softmax(QK^T/sqrt(d)) of a block at the kept queries, [B, heads, q, k]."""
    q, k, _ = queries_keys_values(block.attn, block.norm1(x), rows)
    return (q * block.attn.scale @ k.transpose(-2, -1)).softmax(dim=-1)
