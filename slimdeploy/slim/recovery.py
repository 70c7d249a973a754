"""What end-to-end fine-tuning minimises: the labels' loss, and staying the dense model."""

from __future__ import annotations

from typing import Any

import torch
from timm.task import LogitDistillationTask
from torch import Tensor, nn
from torch.nn import functional as F

from slimdeploy.slim.amp import autocast
from slimdeploy.slim.options import AmpDtype


class ReadTokens(nn.Module):
    """A slim model that also gives the normalised tokens its head reads (for DDP, one forward).

    Args:
        slim: has timm's `forward_features` and `forward_head`, as `SlimVit` does.
        reads: how many of the last layer's tokens the head reads, first ones first.
    """

    def __init__(self, slim: Any, reads: int) -> None:
        super().__init__()
        self.slim, self.reads = slim, reads
        self.num_classes, self.in_chans = slim.num_classes, slim.in_chans
        self.pretrained_cfg = slim.pretrained_cfg

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, classes] and tokens [B, reads, D]."""
        tokens = self.slim.forward_features(images)
        return self.slim.forward_head(tokens), tokens[:, : self.reads]


class RecoveryTask(LogitDistillationTask):
    """timm's logit distillation from the dense model, and its head's input as a second target.

    With few classes logits say little; the tokens that the head reads say what the dense model saw.
    Their loss is the squared error over the dense tokens' squared norm, image by image: a mean over
    images, as all losses here, so that processes may share a batch.
    """

    def __init__(
        self,
        student: ReadTokens,
        teacher: nn.Module,
        feature_weight: float,
        amp_dtype: AmpDtype = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(student, teacher, verbose=False, **kwargs)
        self.feature_weight, self.reads = feature_weight, student.reads
        self.amp = autocast(self.device, amp_dtype)
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(False)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Losses and logits for images [B, C, H, W] and labels [B]."""
        with torch.no_grad(), self.amp:
            dense = self.teacher.model.forward_features(input)
            dense_logits = self.teacher.model.forward_head(dense).float()
            dense = dense[:, : self.reads].float()
        with self.amp:
            logits, tokens = self.trainable_module(input)
        logits = logits.float()
        task_loss = self.criterion(logits, target)
        wanted = F.log_softmax(dense_logits / self.temperature, -1)
        found = F.log_softmax(logits / self.temperature, -1)
        kd_loss = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        kd_loss = kd_loss * self.temperature**2
        feature_loss = relative_error(tokens.float(), dense)
        loss = self.task_loss_weight * task_loss + self.distill_loss_weight * kd_loss
        return {
            "loss": loss + self.feature_weight * feature_loss,
            "output": logits,
            "task_loss": task_loss,
            "kd_loss": kd_loss,
            "feature_loss": feature_loss,
        }


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the wanted tokens' squared norm, both [B, n, D]: mean over images."""
    wrong, norm = (found - wanted).square().sum((1, 2)), wanted.square().sum((1, 2))
    return (wrong / norm).mean()
