"""The conversion that the benchmark of two exporters rests on."""

from __future__ import annotations

import timm
import torch

from tools.hf_dinov2 import from_timm


def test_the_same_function_in_the_other_library() -> None:
    torch.manual_seed(0)
    dense = timm.create_model(
        "vit_small_patch14_dinov2", img_size=56, num_classes=5, embed_dim=48, depth=2, num_heads=3
    ).eval()
    for parameter in dense.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        assert torch.allclose(from_timm(dense)(images), dense(images), atol=1e-5)
