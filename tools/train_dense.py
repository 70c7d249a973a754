"""Fine-tune a dense timm ViT, first on small images, then at its own size; resumable.

Slimming is judged against a dense model of the same data; this makes one in CPU time. A ViT takes
any grid and any set of patches: most steps run on few tokens, of small images (progressive
resizing) or of large ones (patch dropout); the last on all.

    python -m tools.train_dense --model vit_small_patch14_dinov2 --initial-checkpoint W \
        --data-dir build/fashion_mnist --stages 98:3,196/0.6:1,196:0.2 --output dense.safetensors
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers import set_fused_attn
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from slimdeploy.files import atomic_path
from slimdeploy.images import ImageFolder
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.slim.amp import autocast
from slimdeploy.slim.checkpoint import save_weights
from slimdeploy.slim.options import AmpDtype
from tools.training_data import (
    MEAN,
    STD,
    Step,
    augment,
    evenly,
    load_arrays,
    normalise,
    plan_steps,
    soft_targets,
)


class Pace:
    """A running mean of the loss, and images a second since it began."""

    def __init__(self) -> None:
        self.started, self.images, self.loss = time.time(), 0, math.nan

    def tell(self, loss: float, images: int) -> None:
        """Count a step."""
        self.loss = loss if math.isnan(self.loss) else self.loss + (loss - self.loss) * 0.02
        self.images += images

    def __str__(self) -> str:
        rate = self.images / (time.time() - self.started)
        return f"loss {self.loss:.4f} {rate:.1f} images/s"


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, size: int, dtype: AmpDtype) -> float:
    """Top-1 in that precision, for choosing only; `slimdeploy evaluate` gives the figures."""
    model.eval()
    right = 0
    for x, y in zip(images.split(64), labels.split(64), strict=True):
        x = F.interpolate(x.float() / 255, (size, size), mode="bicubic", antialias=True)
        with autocast(x.device, dtype):
            right += int((model(normalise(x.clamp(0, 1))).argmax(1) == y).sum())
    return right / len(labels)


def make_model(name: str, size: int, classes: int, initial: Path | None, drop_path: float) -> Any:
    """A ViT of that input size that takes others too, with pretrained weights and a new head."""
    weights = {} if initial is None else {k: v.float() for k, v in load_file(initial).items()}
    head = {k: weights.pop(k) for k in ("head.weight", "head.bias") if k in weights}
    shape = {"img_size": _trained_size(name, weights["pos_embed"])} if weights else {}
    model = timm.create_model(name, pretrained=initial is None, num_classes=0, **shape)
    if weights:
        model.load_state_dict(weights)
    model.set_input_size(img_size=size)
    fresh = timm.create_model(
        name, img_size=size, num_classes=classes, dynamic_img_size=True, drop_path_rate=drop_path,
        patch_drop_rate=0.5,
    )  # fmt: skip
    fresh.load_state_dict(model.state_dict(), strict=False)
    nn.init.zeros_(fresh.head.weight)
    nn.init.zeros_(fresh.head.bias)
    if head and len(head["head.bias"]) == classes:
        fresh.load_state_dict(head, strict=False)
    return fresh


def _trained_size(name: str, positions: Tensor) -> int:
    """Input size in pixels of the weights whose position table [1, prefix + patches, D] this is."""
    model = timm.create_model(name, num_classes=0)
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    return math.isqrt(positions.shape[1] - prefix) * int(model.patch_embed.patch_size[0])


def freeze(model: Any, blocks: int) -> None:
    """Leave the first blocks, and the embedding before them, as they are: no gradients there."""
    parts = [model.patch_embed, *model.blocks[:blocks]] if blocks else []
    for part in parts:
        part.requires_grad_(False)
    if blocks:
        model.pos_embed.requires_grad_(False)
        model.cls_token.requires_grad_(False)


def learning_rate(step: int, total: int, peak: float) -> float:
    """Linear rise over 5 % of the steps, then a cosine to 1 % of the peak."""
    rise = max(1, total // 20)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / (total - rise))))


class Trainer:
    """A run: the model, its moving average, the optimiser, and where they stand.

    Args:
        arguments: of the command line.
        classes: how many the head tells apart.
        size: of the last step's images, in pixels.
    """

    def __init__(self, arguments: argparse.Namespace, classes: int, size: int) -> None:
        self.arguments, self.size = arguments, size
        self.device = torch.device(arguments.device)
        initial, drop_path = arguments.initial_checkpoint, arguments.drop_path
        self.model = make_model(arguments.model, size, classes, initial, drop_path)
        self.model.to(self.device)
        freeze(self.model, arguments.freeze_blocks)
        self.optimiser = create_optimizer_v2(
            self.model, opt="adamw", lr=arguments.lr, weight_decay=0.05,
            layer_decay=arguments.layer_decay,
        )  # fmt: skip
        self.ema = ModelEmaV3(self.model, decay=arguments.ema_decay, use_warmup=True)
        self.done = 0
        self.state_path = arguments.output.with_suffix(".state")
        if self.state_path.is_file():
            self.resume()

    def resume(self) -> None:
        """Go on from the file that `save` left."""
        state = torch.load(self.state_path, weights_only=True, map_location=self.device)
        self.done = state["step"]
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])

    def save(self) -> None:
        """Leave all that going on needs, beside the output."""
        state = {
            "step": self.done,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        with atomic_path(self.state_path) as path:
            torch.save(state, path)

    def step(self, step: Step, images: Tensor, targets: Tensor, lr: float) -> float:
        """One optimiser step at that learning rate; its loss."""
        # Dropped patches and paths depend on the step alone, so that a resumed run repeats them.
        torch.manual_seed(self.arguments.seed * 1_000_003 + self.done)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.model.train()
        self.model.patch_drop.prob = step.drop
        with autocast(self.device, self.arguments.amp_dtype):
            logits = self.model(images).float()
            loss = F.cross_entropy(logits, targets, label_smoothing=self.arguments.smoothing)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.ema.update(self.model, step=self.done)
        self.done += 1
        return float(loss.detach())

    def write(self) -> None:
        """The weights, as `slimdeploy` reads them."""
        model = self.model if self.arguments.save == "last" else self.ema.module
        preprocessing = Preprocessing(
            input_size=(3, self.size, self.size), crop_pct=1.0, interpolation="bicubic",
            mean=MEAN, std=STD,
        )  # fmt: skip
        save_weights(
            model.eval().cpu(), self.arguments.output, name=self.arguments.model,
            preprocessing=preprocessing, dtype="float16",
        )  # fmt: skip


def train(arguments: argparse.Namespace) -> None:
    """Train from the start or from where a killed run stood, and write the weights."""
    device = torch.device(arguments.device)
    if device.type == "cpu":  # there the fused kernel's backward pass costs half of a step again
        set_fused_attn(False)
    folder = ImageFolder.open(arguments.data_dir, "train")
    images = load_arrays(folder)[0].to(device)
    targets = soft_targets(folder, arguments.annotations).to(device)
    held = evenly(load_arrays(ImageFolder.open(arguments.data_dir, "val")), arguments.val_images)
    held = (held[0].to(device), held[1].to(device))
    steps = plan_steps(arguments.stages, len(images), arguments.batch_size, arguments.seed)
    trainer = Trainer(arguments, len(folder.classes), steps[-1].size)
    pace = Pace()
    for index in range(trainer.done, len(steps)):
        step = steps[index]
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + index)
        x = augment(images[step.rows], step.size, generator, arguments.symmetry)
        lr = learning_rate(index, len(steps), arguments.lr)
        pace.tell(trainer.step(step, x, targets[step.rows], lr), len(step.rows))
        if trainer.done % 50 == 0:
            print(f"step {trainer.done}/{len(steps)} size {step.size} {pace}", flush=True)
        if trainer.done % arguments.check_every == 0 or trainer.done == len(steps):
            found = accuracy(trainer.ema.module, *held, step.size, arguments.amp_dtype)
            print(f"step {trainer.done}: validation top-1 {found:.2%} at {step.size}", flush=True)
            trainer.save()
    trainer.write()
    print(f"wrote {arguments.output}")


def build_parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--initial-checkpoint", type=Path, help="else timm's pretrained weights")
    parser.add_argument("--data-dir", type=Path, required=True, help="with train/ and val/")
    parser.add_argument(
        "--stages", required=True, help="size[/dropped]:epochs, as 98:1.5,196/0.6:1"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--layer-decay", type=float, default=0.8)
    parser.add_argument("--drop-path", type=float, default=0.0)
    parser.add_argument("--ema-decay", type=float, default=0.995)
    parser.add_argument("--freeze-blocks", type=int, default=0, help="first blocks left alone")
    parser.add_argument("--save", choices=["average", "last"], default="average", help="weights")
    parser.add_argument(
        "--symmetry",
        choices=["upright", "mirror", "dihedral"],
        default="upright",
        help="of the images: left and right, up and down too, turns too",
    )
    parser.add_argument("--smoothing", type=float, default=0.1, help="of the labels")
    parser.add_argument(
        "--annotations",
        type=Path,
        help="CSV: file, and the probability of the first of two classes",
    )
    parser.add_argument("--val-images", type=int, default=2000, help="drawn evenly")
    parser.add_argument("--check-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument(
        "--amp-dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of forward passes"
    )
    parser.add_argument("--device", default="cpu", help="torch device, as cuda")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    train(build_parser().parse_args())


if __name__ == "__main__":
    main()
