"""What end-to-end fine-tuning minimises: the labels' loss, and staying the dense model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.task import LogitDistillationTask
from torch import Tensor, nn
from torch.nn import functional as F

from slimdeploy.slim.amp import attention_for_gradients, autocast
from slimdeploy.slim.options import AmpDtype
from slimdeploy.slim.streams import recorded_streams


class SlimTokens(nn.Module):
    """A slim model that also gives its tokens (for DDP, one forward).

    Args:
        slim: has timm's `forward_features` and `forward_head`, and `.dense`, as `SlimVit` does.
        reads: how many of the last layer's tokens the head reads, first ones first.
        layers: layers (from 1) after which the residual stream is given too.
    """

    def __init__(self, slim: Any, reads: int, layers: Sequence[int] = ()) -> None:
        super().__init__()
        self.slim, self.reads, self.layers = slim, reads, tuple(layers)
        self.num_classes, self.in_chans = slim.num_classes, slim.in_chans
        self.pretrained_cfg = slim.pretrained_cfg

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits [B, classes], normalised tokens [B, reads, D], streams [B, kept tokens, D]."""
        with recorded_streams(self.slim.dense, self.layers) as streams:
            tokens = self.slim.forward_features(images)
        return self.slim.forward_head(tokens), tokens[:, : self.reads], streams


class RecoveryTask(LogitDistillationTask):
    """timm's logit distillation from the dense model, and its tokens as a second target.

    With few classes logits say little; the tokens that the head reads say what the dense model saw,
    and the tokens that a layer keeps what it made of each patch. Their loss is the squared error
    over the dense tokens' squared norm, image by image: a mean over images, as all losses here, so
    that processes may share a batch. Tokens of inner layers are normalised first, each by itself.

    Args:
        feature_weight: of the tokens that the head reads.
        kept: per compared layer the global ids of its tokens.
        token_weight: of these tokens.
    """

    def __init__(
        self,
        student: SlimTokens,
        teacher: nn.Module,
        feature_weight: float,
        amp_dtype: AmpDtype = "float32",
        kept: Mapping[int, Sequence[int]] | None = None,
        token_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, teacher, verbose=False, **kwargs)
        self.classes = student.num_classes
        self.weights = {
            "kd_loss": self.distill_loss_weight if self.classes else 0.0,
            "feature_loss": feature_weight,
            "token_loss": token_weight,
        }
        self.asks = any(self.weights.values())  # with none the dense model need not run
        self.reads, self.layers = student.reads, student.layers
        self.kept = [torch.tensor(ids, device=self.device) for ids in (kept or {}).values()]
        self.amp = autocast(self.device, amp_dtype)
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(False)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Losses and logits for images [B, C, H, W] and labels [B], not read if of no weight."""
        with self.amp, attention_for_gradients(self.device):
            logits, tokens, streams = self.trainable_module(input)
        logits = logits.float()
        parts = self._distances(input, logits, tokens, streams) if self.asks else {}
        loss, told = logits.new_zeros(()), dict(parts)
        if self.task_loss_weight:
            told["task_loss"] = self.criterion(logits, target)
            loss = self.task_loss_weight * told["task_loss"]
        for name, value in parts.items():
            loss = loss + self.weights[name] * value
        return {"loss": loss, "output": logits, **told}

    def _distances(
        self, images: Tensor, logits: Tensor, tokens: Tensor, streams: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """How far the student is from the dense model on these images, by loss."""
        dense_logits, dense_tokens, dense_streams = self._ask_teacher(images)
        parts = {}
        if self.classes:  # without, what the head gives are no logits
            wanted = F.log_softmax(dense_logits / self.temperature, -1)
            found = F.log_softmax(logits / self.temperature, -1)
            divergence = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
            parts["kd_loss"] = divergence * self.temperature**2
        parts["feature_loss"] = relative_error(tokens.float(), dense_tokens)
        if self.layers:
            pairs = zip(streams, dense_streams, self.kept, strict=True)
            errors = [token_error(here, there[:, ids]) for here, there, ids in pairs]
            parts["token_loss"] = torch.stack(errors).mean()
        return parts

    @torch.no_grad()
    def _ask_teacher(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        dense: Any = self.teacher.model
        with self.amp, recorded_streams(dense, self.layers) as streams:
            tokens = dense.forward_features(images)
            logits = dense.forward_head(tokens)
        return logits.float(), tokens[:, : self.reads].float(), streams


def token_error(found: Tensor, wanted: Tensor) -> Tensor:
    """`relative_error` of residual streams [B, n, D], each token normalised by itself."""
    size = found.shape[-1:]
    return relative_error(F.layer_norm(found.float(), size), F.layer_norm(wanted.float(), size))


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the wanted tokens' squared norm, both [B, n, D]: mean over images."""
    wrong, norm = (found - wanted).square().sum((1, 2)), wanted.square().sum((1, 2))
    return (wrong / norm).mean()
