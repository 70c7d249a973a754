"""Hugging Face transformers' vision models, from configurations alone: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from tools.matrix.families import CLASSES, Family, randomise

SIZE = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
}


class OneOutput(nn.Module):
    """A model that takes pixels and returns one tensor of what the model returns."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(self.model(pixel_values=image), self.output)
        return result


def hugging_face_family(
    name: str,
    model: str,
    config: str,
    *,
    output: str = "logits",
    prefix: int = 1,
    reads: tuple[int, ...] = (0,),
    pools: bool = False,
    **changes: Any,
) -> Family:
    """A class of transformers with a small configuration; unfused means `eager` attention."""

    def build(fused: bool) -> nn.Module:
        settings = getattr(transformers, config)(**{**SIZE, "num_labels": CLASSES, **changes})
        settings._attn_implementation = "sdpa" if fused else "eager"
        made = getattr(transformers, model)(settings)
        return randomise(OneOutput(made, output))

    return Family(name, build, (64, 64), prefix + 16, prefix, reads, pools)


POOLER = {"output": "pooler_output"}
MEAN = {"reads": (), "pools": True}

HUGGING_FACE = [
    hugging_face_family("hf-vit", "ViTForImageClassification", "ViTConfig"),
    hugging_face_family("hf-vit-pooler", "ViTModel", "ViTConfig", **POOLER),
    hugging_face_family(
        "hf-deit",
        "DeiTForImageClassificationWithTeacher",
        "DeiTConfig",
        prefix=2,
        reads=(0, 1),
    ),
    hugging_face_family("hf-dinov2", "Dinov2ForImageClassification", "Dinov2Config", pools=True),
    hugging_face_family("hf-dinov2-pooler", "Dinov2Model", "Dinov2Config", **POOLER),
    hugging_face_family(
        "hf-dinov2-registers",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        prefix=5,
        **POOLER,
    ),
    hugging_face_family(
        "hf-dinov3",
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        prefix=5,
        num_register_tokens=4,
        **POOLER,
    ),
    hugging_face_family("hf-clip", "CLIPVisionModel", "CLIPVisionConfig", **POOLER),
    hugging_face_family(
        "hf-clip-projection",
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        output="image_embeds",
        projection_dim=8,
    ),
    hugging_face_family(
        "hf-siglip", "SiglipVisionModel", "SiglipVisionConfig", prefix=0, **MEAN, **POOLER
    ),
    hugging_face_family("hf-beit", "BeitForImageClassification", "BeitConfig", **MEAN),
    hugging_face_family("hf-vit-msn", "ViTMSNForImageClassification", "ViTMSNConfig"),
    hugging_face_family(
        "hf-data2vec", "Data2VecVisionForImageClassification", "Data2VecVisionConfig", **MEAN
    ),
    hugging_face_family("hf-ijepa", "IJepaForImageClassification", "IJepaConfig", prefix=0, **MEAN),
]
