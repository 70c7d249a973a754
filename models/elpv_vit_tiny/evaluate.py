"""Measure the stored model with timm's own evaluation transform.

python models/elpv_vit_tiny/evaluate.py --data-dir build/elpv --split test
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from rich.progress import track
from safetensors import safe_open
from student import load_student
from timm.data import create_transform
from torchvision.datasets import ImageFolder


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(description="Measure the small ELPV model.")
    parser.add_argument("--data-dir", type=Path, required=True, help="from tools/prepare_elpv.py")
    parser.add_argument("--split", choices=["train", "val", "test"], default="val")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--weights", type=Path, default=Path(__file__).with_name("model.safetensors")
    )
    return parser


def load_folder(weights: Path, folder: Path) -> ImageFolder:
    """Open an ImageFolder with the preprocessing that is stored beside the weights."""
    with safe_open(weights, framework="pt") as handle:
        metadata = handle.metadata()
    options = json.loads(metadata["preprocessing"])
    images = ImageFolder(str(folder), create_transform(**options, is_training=False))
    if images.classes != json.loads(metadata["class_names"]):
        raise ValueError(f"the classes in {folder} are not the model's")
    return images


@torch.inference_mode()
def confusion_matrix(weights: Path, folder: Path, batch_size: int) -> torch.Tensor:
    """Return counts by true class (rows) and predicted class (columns)."""
    model, images = load_student(weights), load_folder(weights, folder)
    matrix = torch.zeros(len(images.classes), len(images.classes), dtype=torch.long)
    loader = torch.utils.data.DataLoader(images, batch_size)
    for batch, labels in track(loader, description=f"Evaluating {folder.name}"):
        predicted = model(batch).argmax(dim=1)
        matrix.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
    return matrix


def main() -> None:
    """Print accuracy, its standard error, the majority baseline and the confusion matrix."""
    arguments = build_parser().parse_args()
    folder = arguments.data_dir / arguments.split
    matrix = confusion_matrix(arguments.weights, folder, arguments.batch_size)
    count = int(matrix.sum())
    accuracy = int(matrix.diagonal().sum()) / count
    result = {
        "split": arguments.split,
        "n": count,
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / count),
        "majority_baseline": int(matrix.sum(dim=1).max()) / count,
        "confusion": matrix.tolist(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
