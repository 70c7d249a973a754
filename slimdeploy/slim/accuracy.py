"""Accuracy of a torch model, for watching a training; artifacts are measured as they are run."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from slimdeploy.images import ImageFolder
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.slim.amp import autocast
from slimdeploy.slim.options import AmpDtype


@torch.inference_mode()
def torch_logits(
    model: nn.Module,
    images: NDArray[np.float32],
    device: str = "cpu",
    batch_size: int = 32,
    amp_dtype: AmpDtype = "float32",
) -> NDArray[np.float32]:
    """Logits [n, classes] of preprocessed images [n, 3, H, W], computed in `amp_dtype`."""
    model.eval()
    with autocast(torch.device(device), amp_dtype):
        parts = [
            model(part.to(device)).float().cpu()
            for part in torch.from_numpy(images).split(batch_size)
        ]
    return torch.cat(parts).numpy()


def torch_top1(
    model: nn.Module,
    folder: ImageFolder,
    preprocessing: Preprocessing,
    device: str = "cpu",
    amp_dtype: AmpDtype = "float32",
) -> float:
    """Share of the folder's images whose largest logit is the label's."""
    right = 0
    for batch in folder.batches(preprocessing, 32):
        logits = torch_logits(model, batch.images, device, amp_dtype=amp_dtype)
        right += int((logits.argmax(1) == batch.labels).sum())
    return right / len(folder)
