"""The teacher, DINOv2 ViT-S/14, and its token features cached on disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import timm
import torch
from data import dihedral, to_input
from rich.progress import track
from safetensors.torch import load_file
from torch import nn

TEACHER_NAME = "vit_small_patch14_dinov2.lvd142m"
IMAGE_SIZE = 196  # 14 x 14 patches of 14 pixels: the token grid of the student at 224 pixels
GREY_MEAN, GREY_STD = 0.449, 0.226  # ImageNet's statistics, averaged over the colours


def load_teacher(checkpoint: Path | None) -> nn.Module:
    """Create the teacher with local weights, or with timm's pretrained ones."""
    model = timm.create_model(
        TEACHER_NAME, pretrained=checkpoint is None, num_classes=0, img_size=518
    )
    if checkpoint is not None:
        state = {name: tensor.float() for name, tensor in load_file(checkpoint).items()}
        model.load_state_dict(state)
    model.set_input_size(img_size=IMAGE_SIZE)
    return model.eval().requires_grad_(False)


def embed(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the tokens that enter the first block."""
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))


def token_features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the tokens after the final norm."""
    return model.norm(model.blocks(embed(model, images)))


@torch.inference_mode()
def cache_view(
    model: nn.Module, images: torch.Tensor, view: int, prefix: Path, batch_size: int = 32
) -> np.ndarray:
    """Return a float16 memory map of the tokens of one symmetry view, computing it if absent."""
    path = prefix.with_name(f"{prefix.name}.view{view}.final.npy")
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        shape = (len(images), model.patch_embed.num_patches + 1, model.embed_dim)
        memory = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
        compiled = torch.compile(token_features, dynamic=False)
        starts = range(0, len(images), batch_size)
        for start in track(starts, description=f"Teacher tokens, view {view}"):
            batch = dihedral(images[start : start + batch_size], view)
            # A last, smaller batch is not worth another compilation.
            extract = compiled if len(batch) == batch_size else token_features
            tokens = extract(model, to_input(batch, GREY_MEAN, GREY_STD))
            memory[start : start + batch_size] = tokens.half().numpy()
        memory.flush()
        os.replace(partial, path)
    return np.load(path, mmap_mode="r")
