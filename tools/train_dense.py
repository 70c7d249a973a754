"""Fine-tune a dense timm ViT, first on small images, then at its own size; resumable.

Slimming is judged against a dense model of the same data; this makes one in CPU time. A ViT takes
any grid and any set of patches: most steps run on few tokens, of small images (progressive
resizing) or of large ones (patch dropout); the last on all.

    python -m tools.train_dense --model vit_small_patch14_dinov2 --initial-checkpoint W \
        --data-dir build/fashion_mnist --stages 98:3,196/0.6:1,196:0.2 --output dense.safetensors
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from timm.layers import set_fused_attn
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from slimdeploy.files import atomic_path
from slimdeploy.images import ImageFolder, read_image
from slimdeploy.preprocessing import Preprocessing, to_rgb
from slimdeploy.slim.checkpoint import save_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Step:
    """One optimiser step: image size in pixels, share of patches dropped, training rows."""

    size: int
    drop: float
    rows: Tensor


def load_arrays(folder: ImageFolder) -> tuple[Tensor, Tensor]:
    """All images as bytes, [n, C, H, W] (C is 1 if all are grey), and labels [n]."""
    images = [np.asarray(to_rgb(read_image(file))) for file in folder.files]
    data = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    if bool((data[:, :1] == data[:, 1:]).all()):
        data = data[:, :1]
    return data.contiguous(), torch.tensor(folder.labels)


def plan_steps(stages: str, n: int, batch: int, seed: int) -> list[Step]:
    """The whole run, stage after stage: `98:1.5,196/0.6:1` is size[/dropped patches]:epochs."""
    generator, steps = torch.Generator().manual_seed(seed), []
    for stage in stages.split(","):
        size, epochs = stage.split(":")
        size, _, drop = size.partition("/")
        wanted = round(float(epochs) * n / batch)
        rows = torch.cat(
            [torch.randperm(n, generator=generator) for _ in range(math.ceil(float(epochs)))]
        )
        steps += [Step(int(size), float(drop or 0), part) for part in rows.split(batch)[:wanted]]
    return steps


def soft_targets(folder: ImageFolder, annotations: Path | None) -> Tensor:
    """Class probabilities to learn, [n, classes]: of the labels, or halfway to the annotators'.

    Args:
        annotations: a CSV of the columns `file` and `probability`, that of the first class.
    """
    targets = F.one_hot(torch.tensor(folder.labels), len(folder.classes)).float()
    if annotations is None:
        return targets
    with annotations.open(encoding="utf-8", newline="") as handle:
        known = {row["file"]: float(row["probability"]) for row in csv.DictReader(handle)}
    first = torch.tensor([known[Path(file).name] for file in folder.files])
    return (targets + torch.stack([first, 1 - first], dim=1)) / 2


def augment(images: Tensor, size: int, generator: torch.Generator, symmetry: str) -> Tensor:
    """Random flip, shift (7 %), zoom (10 %), brightness, contrast: bytes to [B, 3, size, size].

    Args:
        symmetry: "upright" flips left and right only, "mirror" up and down too, "dihedral" also
            turns.
    """
    n = len(images)
    zoom = 1 + 0.1 * (2 * torch.rand(n, generator=generator) - 1)
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    shift = 0.14 * (2 * torch.rand(n, 2, generator=generator) - 1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom * flip, zoom, shift
    if symmetry != "upright":
        theta[:, 1, 1] *= torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    if symmetry == "dihedral":
        turned = torch.rand(n, generator=generator) < 0.5
        theta[turned] = theta[turned][:, [1, 0]]
    x, theta = images.float() / 255, theta.to(images.device)
    grid = F.affine_grid(theta, [n, x.shape[1], size, size], align_corners=False)
    mode = "bicubic" if x.shape[-1] < size else "bilinear"
    x = F.grid_sample(x, grid, mode=mode, padding_mode="reflection", align_corners=False)
    gain = (1 + 0.1 * (2 * torch.rand(2, n, 1, 1, 1, generator=generator) - 1)).to(x.device)
    x = ((x * gain[0] - 0.5) * gain[1] + 0.5).clamp(0, 1)
    return normalise(x)


def normalise(x: Tensor) -> Tensor:
    """Colours in 0..1, [B, 1 or 3, H, W], to the model's input [B, 3, H, W]."""
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (x.expand(-1, 3, -1, -1) - mean) / std


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> float:
    """Top-1 in bfloat16 autocast, for choosing only; `slimdeploy evaluate` gives the figures."""
    model.eval()
    right = 0
    for x, y in zip(images.split(64), labels.split(64), strict=True):
        x = F.interpolate(x.float() / 255, (size, size), mode="bicubic", antialias=True)
        with torch.autocast(x.device.type, torch.bfloat16):
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


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    if device.type == "cpu":  # there the fused kernel's backward pass costs half of a step again
        set_fused_attn(False)
    folder = ImageFolder.open(arguments.data_dir, "train")
    images = load_arrays(folder)[0].to(device)
    targets = soft_targets(folder, arguments.annotations).to(device)
    held = load_arrays(ImageFolder.open(arguments.data_dir, "val"))
    held = tuple(x.to(device) for x in _evenly(held, arguments.val_images))
    steps = plan_steps(arguments.stages, len(images), arguments.batch_size, arguments.seed)
    size = steps[-1].size
    model = make_model(
        arguments.model,
        size,
        len(folder.classes),
        arguments.initial_checkpoint,
        arguments.drop_path,
    )
    model.to(device)
    freeze(model, arguments.freeze_blocks)
    optimiser = create_optimizer_v2(
        model, opt="adamw", lr=arguments.lr, weight_decay=0.05, layer_decay=arguments.layer_decay
    )
    ema = ModelEmaV3(model, decay=arguments.ema_decay, use_warmup=True)
    state_path = arguments.output.with_suffix(".state")
    first = 0
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True, map_location=device)
        first = state["step"]
        model.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
    started, mean_loss = time.time(), 0.0
    for index in range(first, len(steps)):
        step = steps[index]
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + index)
        x = augment(images[step.rows], step.size, generator, arguments.symmetry)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(index, len(steps), arguments.lr) * group.get(
                "lr_scale", 1.0
            )
        model.train()
        model.patch_drop.prob = step.drop
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(
                model(x).float(), targets[step.rows], label_smoothing=arguments.smoothing
            )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        ema.update(model, step=index)
        mean_loss += (
            (float(loss.detach()) - mean_loss) * 0.02 if index > first else float(loss.detach())
        )
        if (index + 1) % 50 == 0:
            rate = (index + 1 - first) * arguments.batch_size / (time.time() - started)
            line = f"step {index + 1}/{len(steps)} size {step.size} loss {mean_loss:.4f}"
            print(f"{line} {rate:.1f} images/s", flush=True)
        last = index + 1 == len(steps)
        if last or (index + 1) % arguments.check_every == 0:
            found = accuracy(ema.module, *held, step.size)
            print(f"step {index + 1}: validation top-1 {found:.2%} at {step.size}", flush=True)
            state = {
                "step": index + 1,
                "model": model.state_dict(),
                "ema": ema.module.state_dict(),
                "optimiser": optimiser.state_dict(),
            }
            with atomic_path(state_path) as path:
                torch.save(state, path)
    preprocessing = Preprocessing(
        input_size=(3, size, size), crop_pct=1.0, interpolation="bicubic", mean=MEAN, std=STD
    )
    save_weights(
        (model if arguments.save == "last" else ema.module).eval().cpu(),
        arguments.output,
        name=arguments.model,
        preprocessing=preprocessing,
        dtype="float16",
    )
    print(f"wrote {arguments.output}")


def _evenly(data: tuple[Tensor, Tensor], n: int) -> tuple[Tensor, Tensor]:
    rows = torch.arange(min(n, len(data[1]))) * len(data[1]) // min(n, len(data[1]))
    return data[0][rows], data[1][rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    parser.add_argument("--device", default="cpu", help="torch device, as cuda")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
