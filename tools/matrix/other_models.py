"""Models that are no plain vision transformers: each is slimmed soundly or refused by name."""

from __future__ import annotations

from typing import Any

import timm
import timm.layers
import torch
from torch import nn

from tools.matrix.families import CLASSES, SMALL, Family, randomise, timm_family


class DenseHead(nn.Module):
    """A plain ViT whose head is a convolution over the grid of patches, as for segmentation."""

    def __init__(self, backbone: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid = grid
        self.head = nn.Conv2d(48, CLASSES, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = self.backbone.forward_features(image)[:, 1:]
        result: torch.Tensor = self.head(patches.transpose(1, 2).unflatten(2, self.grid))
        return result


def _dense_head(fused: bool) -> nn.Module:
    timm.layers.set_fused_attn(fused)
    backbone = timm.create_model("vit_tiny_patch16_224", **SMALL)
    return randomise(DenseHead(backbone, (4, 4)))


def _all_tokens(fused: bool) -> nn.Module:
    timm.layers.set_fused_attn(fused)
    return randomise(
        timm.create_model("vit_tiny_patch16_224", **{**SMALL, "num_classes": 0}, global_pool="")
    )


def other(name: str, timm_name: str, size: int = 64, **changes: Any) -> Family:
    """A model of timm that is no plain ViT; its tokens are for slimdeploy to find, if any."""

    def build(fused: bool) -> nn.Module:
        timm.layers.set_fused_attn(fused)
        return randomise(timm.create_model(timm_name, num_classes=CLASSES, **changes))

    return Family(name, build, (size, size), 0, 0, (), False)


OTHER_MODELS = [
    Family("dense-head", _dense_head, (64, 64), 17, 1, ()),
    Family("all-tokens", _all_tokens, (64, 64), 17, 1, ()),
    timm_family("hybrid-resnet", "vit_tiny_r_s16_p8_224", small=SMALL, grid=(3, 3), patch=32),
    other(
        "swin",
        "swin_tiny_patch4_window7_224",
        64,
        img_size=64,
        window_size=4,
        embed_dim=12,
        depths=(2, 2),
        num_heads=(1, 2),
    ),
    other(
        "swinv2",
        "swinv2_tiny_window8_256",
        64,
        img_size=64,
        window_size=4,
        embed_dim=12,
        depths=(2, 2),
        num_heads=(1, 2),
    ),
    other("cait", "cait_xxs24_224", 64, img_size=64, embed_dim=48, depth=3, num_heads=3),
    other("xcit", "xcit_nano_12_p16_224", 64, img_size=64, embed_dim=48, depth=3, num_heads=3),
    other("levit", "levit_128s", 224),
    other("pvt", "pvt_v2_b0", 64),
    other("pit", "pit_ti_224", 64, img_size=64),
    other("convit", "convit_tiny", 64, img_size=64, embed_dim=12, depth=4),
    other("crossvit", "crossvit_tiny_240", 240),
    other("tnt", "tnt_s_patch16_224", 64, img_size=64, depth=2),
    other("volo", "volo_d1_224", 64, img_size=64),
    other("hiera", "hiera_tiny_224", 224),
    other("vit-sam", "samvit_base_patch16", 64, img_size=64, embed_dim=48, depth=3, num_heads=3),
    other("vitamin", "vitamin_small_224", 64, img_size=64),
    other("maxvit", "maxvit_nano_rw_256", 256),
    other("mobilevit", "mobilevit_xxs", 64),
    other("poolformer", "poolformer_s12", 64),
    other("mlp-mixer", "mixer_s16_224", 64, img_size=64),
    other("resnet", "resnet10t", 64),
]
