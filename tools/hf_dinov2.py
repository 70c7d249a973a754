"""A classifier on timm's DINOv2 weights, written as Hugging Face transformers would write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from torch import Tensor, nn

_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


class ClassTokenClassifier(nn.Module):
    """`Dinov2Model` and a linear head on its class token: images [B, 3, H, W] -> [B, classes]."""

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.model(pixel_values=images).last_hidden_state[:, 0])
        return logits


def from_timm(dense: Any) -> ClassTokenClassifier:
    """The same function as timm's `vit_*_patch14_dinov2` with its head, in Hugging Face's modules.

    Args:
        dense: its grid must be that of its position table: nothing is interpolated.
    """
    attention, patches = dense.blocks[0].attn, dense.patch_embed
    config = transformers.Dinov2Config(
        hidden_size=dense.embed_dim,
        num_hidden_layers=len(dense.blocks),
        num_attention_heads=attention.num_heads,
        mlp_ratio=dense.blocks[0].mlp.fc1.out_features // dense.embed_dim,
        image_size=patches.img_size[0],
        patch_size=patches.patch_size[0],
        layer_norm_eps=dense.norm.eps,
    )
    config._attn_implementation = "eager"
    model = transformers.Dinov2Model(config)
    missing, unexpected = model.load_state_dict(renamed(dense.state_dict()), strict=False)
    if unexpected or set(missing) - {"embeddings.mask_token"}:
        raise ValueError(f"not a DINOv2 of timm: missing {missing}, unexpected {unexpected}")
    return ClassTokenClassifier(model, dense.head).eval()


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's weights under the names of transformers 5, qkv in three parts."""
    found = {
        "embeddings.cls_token": weights["cls_token"],
        "embeddings.position_embeddings": weights["pos_embed"],
    }
    for kind in ("weight", "bias"):
        found[f"embeddings.patch_embeddings.projection.{kind}"] = weights[
            f"patch_embed.proj.{kind}"
        ]
        found[f"layernorm.{kind}"] = weights[f"norm.{kind}"]
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    for block in range(depth):
        old, new = f"blocks.{block}", f"encoder.layer.{block}"
        for kind in ("weight", "bias"):
            for ours, theirs in _NAMES.items():
                found[f"{new}.{theirs}.{kind}"] = weights[f"{old}.{ours}.{kind}"]
            parts = weights[f"{old}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                found[f"{new}.attention.{name}.{kind}"] = part
        for scale in (1, 2):
            found[f"{new}.layer_scale{scale}.lambda1"] = weights[f"{old}.ls{scale}.gamma"]
    return found
