"""What a fine-tuning run is asked to do. Needs no torch: the command line's flags are these."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from slimdeploy.cli.numbers import Count, Counts, OptionalCount, Seed
from slimdeploy.errors import InputError

AmpDtype = Literal["float32", "bfloat16", "float16"]
NoneOrMore = Seed  # a whole number, too

_AT_LEAST = {
    "batch_size": 1,
    "workers": 0,
    "seed": 0,
    "kd_temperature": 0.001,
    "warmup_epochs": 0,
    "task_loss_weight": 0,
    "distill_loss_weight": 0,
    "feature_weight": 0,
    "token_weight": 0,
    "weight_decay": 0,
    "color_jitter": 0,
}
_LOSSES = ("task_loss_weight", "distill_loss_weight", "feature_weight", "token_weight")
_AT_MOST = {
    "layer_decay": 1,
    **dict.fromkeys(("kd_temperature", "color_jitter"), 1000),
    # Beyond these, products overflow float32, or the steps cannot be counted.
    **dict.fromkeys(("epochs", "warmup_epochs", "lr", "weight_decay", "clip_grad"), 10**6),
    **dict.fromkeys(_LOSSES, 10**6),
}
_ABOVE_ZERO = ("epochs", "lr", "layer_decay", "clip_grad")
_PROBABILITIES = ("hflip", "vflip")
_CIRCUMSTANCES = ("workers", "device", "save_every")


@dataclass(frozen=True)
class FinetuneOptions:
    """Hyper-parameters, named as in timm's training script where it has them.

    Attributes:
        epochs: passes over the data; 0.3 is allowed.
        max_steps: train for so many steps at most.
        batch_size: images a step, over all processes together.
        relative_lr: make steps in proportion to each parameter's own size, as a ViT's weights
            differ in scale by orders of magnitude; --no-relative-lr makes them alike for all.
        lr: peak learning rate; 3e-4 is a change of 0.03 % a step, without --relative-lr take
            1e-5 to 5e-5. It falls along a cosine.
        weight_decay: of the optimiser.
        layer_decay: learning rate's factor per block from the head down (--no-relative-lr).
        warmup_epochs: epochs over which the learning rate rises.
        smoothing: of the labels.
        clip_grad: largest norm of the gradient.
        task_loss_weight: weight of the labels; 0 learns from the dense model alone.
        distill_loss_weight: weight of the dense model's logits as a target.
        kd_temperature: softmax temperature of those logits.
        feature_weight: weight of the tokens that the dense model's head reads as a target.
        token_weight: weight of all tokens that the slim model keeps at some depths as a target.
        token_layers: after which layers, from 1, these are compared, as 3,6,9 (default: each
            quarter).
        ema_decay: of the running average of the weights, which is the result.
        min_scale: smallest share of the image's area that a random crop keeps.
        ratio: smallest and largest aspect ratio of a random crop.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        color_jitter: strength of brightness, contrast and saturation changes.
        amp_dtype: what both models compute in; weights, losses and steps stay float32.
        workers: processes that load images, no more than there are cores.
        save_every: steps between savings of an unfinished run (default: five minutes).
        seed: of every random choice.
        device: torch device, as cpu or cuda; under torchrun each process takes its own.
    """

    epochs: float = 5
    max_steps: OptionalCount = None
    batch_size: Count = 32
    relative_lr: bool = True
    lr: float = 3e-4
    weight_decay: float = 0.05
    layer_decay: float = 0.8
    warmup_epochs: float = 0.1
    smoothing: float = 0.1
    clip_grad: float = 1.0
    task_loss_weight: float = 1.0
    distill_loss_weight: float = 1.0
    kd_temperature: float = 2.0
    feature_weight: float = 2.0
    token_weight: float = 0.0
    token_layers: Counts = ()
    ema_decay: float = 0.98
    min_scale: float = 0.7
    ratio: tuple[float, float] = (0.9, 1.1)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.2
    amp_dtype: AmpDtype = "float32"
    workers: NoneOrMore = 2
    save_every: OptionalCount = None
    seed: Seed = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, smallest in _AT_LEAST.items():
            if not getattr(self, name) >= smallest:
                raise InputError(f"{self._said(name)}: must be at least {smallest}")
        if not any(getattr(self, name) for name in _LOSSES):
            raise InputError(f"{self._said(_LOSSES[0])}: with no other weight nothing is learned")
        for name in ("max_steps", "save_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{self._said(name)}: must be at least 1")
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise InputError(f"{self._said(name)}: must be above 0")
        for name, largest in _AT_MOST.items():
            if not getattr(self, name) <= largest:
                raise InputError(f"{self._said(name)}: must be at most {largest}")
        for name in ("smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{self._said(name)}: must be at least 0 and below 1")
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{self._said(name)}: must be from 0 to 1")
        if not 0 < self.min_scale <= 1:
            raise InputError(f"{self._said('min_scale')}: must be above 0 and at most 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            low, high = self.ratio
            raise InputError(f"--ratio {low} {high}: must be two, above 0, the smaller first")
        if self.relative_lr and self.layer_decay != type(self).layer_decay:
            raise InputError(f"{self._said('layer_decay')}: goes with --no-relative-lr")
        if self.token_layers and not self.token_weight:
            raise InputError("--token-layers: goes with --token-weight, which is 0")

    def _said(self, name: str) -> str:
        return f"--{name.replace('_', '-')} {getattr(self, name)}"

    def steps(self, per_epoch: int) -> int:
        """Steps of the whole run, at `per_epoch` steps a pass."""
        wanted = max(1, math.floor(self.epochs * per_epoch + 0.5))
        return wanted if self.max_steps is None else min(wanted, self.max_steps)

    def identity(self) -> dict[str, Any]:
        """What decides the result: all but where it is computed and how often it is saved."""
        return {name: value for name, value in asdict(self).items() if name not in _CIRCUMSTANCES}
