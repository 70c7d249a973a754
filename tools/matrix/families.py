"""Small vision transformers of every family, with random parameters.

Each is a published architecture with fewer and narrower blocks and a smaller image, so that an
export takes a second or two and yet every operator of the family is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import timm.layers
import torch
from torch import nn

CLASSES = 7
SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": CLASSES, "img_size": 64}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        build: makes the model; the argument says whether to use PyTorch's fused attention.
        image: height and width of its images, in pixels.
        tokens: how many tokens its blocks have, prefix tokens included.
        prefix: how many of them are no patches.
        reads: the tokens that the head reads by number.
        pools: whether the head pools over all patches (or all tokens) as well.
    """

    name: str
    build: Callable[[bool], nn.Module]
    image: tuple[int, int] = (64, 64)
    tokens: int = 17
    prefix: int = 1
    reads: tuple[int, ...] = (0,)
    pools: bool = False


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and table its own values: exporters merge equal tensors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = name.endswith("weight") and parameter.ndim == 1
            parameter.copy_((1.0 if scale else 0.0) + 0.2 * noise)
    return model.eval()


def timm_family(
    name: str,
    timm_name: str,
    *,
    prefix: int = 1,
    reads: tuple[int, ...] = (0,),
    pools: bool = False,
    grid: tuple[int, int] = (4, 4),
    patch: int = 16,
    small: dict[str, Any] | None = None,
    **changes: Any,
) -> Family:
    """A family of timm, with `SMALL` sizes and `changes` to its arguments."""
    image = (grid[0] * patch, grid[1] * patch)
    arguments = {**(SMALL if small is None else small), "img_size": image, **changes}

    def build(fused: bool) -> nn.Module:
        timm.layers.set_fused_attn(fused)
        return randomise(timm.create_model(timm_name, **arguments))

    return Family(name, build, image, prefix + grid[0] * grid[1], prefix, reads, pools)


PLAIN = [
    timm_family("vit", "vit_tiny_patch16_224"),
    timm_family("vit-depth2", "vit_tiny_patch16_224", depth=2),
    timm_family("vit-depth48", "vit_tiny_patch16_224", depth=48),
    timm_family("vit-patch8", "vit_base_patch8_224", patch=8),
    timm_family("vit-patch14", "vit_huge_patch14_224", patch=14),
    timm_family("vit-patch32", "vit_tiny_patch16_224", patch=32, grid=(3, 3), patch_size=32),
    timm_family("vit-3x5", "vit_tiny_patch16_224", grid=(3, 5)),
    timm_family("vit-qk-norm", "vit_tiny_patch16_224", qk_norm=True),
    timm_family("vit-features", "vit_tiny_patch16_224", num_classes=0),
    timm_family("vit-avg", "vit_tiny_patch16_224", reads=(), pools=True, global_pool="avg"),
    timm_family("vit-avgmax", "vit_tiny_patch16_224", reads=(), pools=True, global_pool="avgmax"),
    timm_family("vit-max", "vit_tiny_patch16_224", reads=(), pools=True, global_pool="max"),
    timm_family("vit-gap", "vit_base_patch16_gap_224", prefix=0, reads=(), pools=True),
    timm_family(
        "vit-22b",
        "vit_tiny_patch16_224",
        block_fn=timm.models.vision_transformer.ParallelScalingBlock,
    ),
    timm_family("vit-parallel", "vit_small_patch16_18x2_224"),
    timm_family(
        "vit-res-post-norm",
        "vit_tiny_patch16_224",
        block_fn=timm.models.vision_transformer.ResPostBlock,
    ),
    timm_family("flexivit", "flexivit_small"),
    timm_family("deit", "deit_tiny_patch16_224"),
    timm_family("deit-distilled", "deit_tiny_distilled_patch16_224", prefix=2, reads=(0, 1)),
    timm_family("deit3", "deit3_small_patch16_224"),
    timm_family("vit-reg4", "vit_small_patch14_reg4_dinov2", patch=14, prefix=5),
    timm_family("vit-reg4-gap", "vit_medium_patch16_reg4_gap_256", prefix=4, reads=(), pools=True),
    timm_family("vit-reg4-map", "vit_so150m_patch16_reg4_map_256", prefix=4, reads=(), pools=True),
    timm_family("dinov2", "vit_small_patch14_dinov2", patch=14),
    timm_family("dinov2-518", "vit_small_patch14_dinov2", patch=14, grid=(37, 37), depth=2),
    timm_family("dinov2-giant", "vit_giant_patch14_dinov2", patch=14, mlp_ratio=2.66667),
    timm_family("clip", "vit_base_patch16_clip_224"),
    timm_family("clip-quickgelu", "vit_base_patch16_clip_quickgelu_224"),
    timm_family("siglip", "vit_base_patch16_siglip_224", prefix=0, reads=(), pools=True),
    timm_family("siglip-gap", "vit_base_patch16_siglip_gap_224", prefix=0, reads=(), pools=True),
]

POSITION = [
    timm_family("beit", "beit_base_patch16_224", reads=(), pools=True),
    timm_family("beitv2", "beitv2_base_patch16_224", reads=(), pools=True),
    timm_family("beit-token", "beit_base_patch16_224", global_pool="token"),
    timm_family("beit3", "beit3_base_patch16_224", reads=(), pools=True),
    timm_family("vit-relpos", "vit_relpos_small_patch16_224", prefix=0, reads=(), pools=True),
    timm_family("vit-relpos-cls", "vit_relpos_base_patch16_cls_224"),
    timm_family("vit-relpos-clsgap", "vit_relpos_base_patch16_clsgap_224", reads=(), pools=True),
    timm_family(
        "vit-relpos-rpn", "vit_relpos_small_patch16_rpn_224", prefix=0, reads=(), pools=True
    ),
    timm_family("vit-srelpos", "vit_srelpos_small_patch16_224", prefix=0, reads=(), pools=True),
    timm_family("eva02", "eva02_tiny_patch14_224", patch=14, reads=(), pools=True),
    timm_family("eva02-clip", "eva02_base_patch16_clip_224"),
    timm_family("eva-giant", "eva_giant_patch14_224", patch=14, reads=(), pools=True),
    timm_family("dinov3", "vit_small_patch16_dinov3", prefix=5, reads=(), pools=True),
    timm_family("dinov3-token", "vit_small_patch16_dinov3", prefix=5, global_pool="token"),
    timm_family(
        "dinov3-plus-qkvb", "vit_small_plus_patch16_dinov3_qkvb", prefix=5, reads=(), pools=True
    ),
    timm_family(
        "rope-reg4-gap", "vit_betwixt_patch16_rope_reg4_gap_256", prefix=4, reads=(), pools=True
    ),
    timm_family("rope-ape", "vit_small_patch16_rope_ape_224"),
    timm_family("rope-mixed", "vit_small_patch16_rope_mixed_224"),
    timm_family("pe-core", "vit_pe_core_base_patch16_224", reads=(), pools=True),
    timm_family("pe-spatial", "vit_pe_spatial_tiny_patch16_512", reads=(), pools=True),
    timm_family("naflexvit", "naflexvit_base_patch16_gap", prefix=4, reads=(), pools=True),
]
