"""Keep a fine-tuned ViT as what it adds to its pretrained weights: a file of megabytes.

The dense models of the accuracy table that were made from DINOv2's ViT-S weigh 44 MB in half
precision. What fine-tuning added to each matrix is well described by a few directions (its leading
singular vectors, as LoRA assumes of the sum); the rest of the network, vectors and head, is small.

    python -m tools.low_rank pack dense.safetensors --base dinov2.safetensors --rank 32 \
        --output models/elpv_vit_small/added.safetensors
    python -m tools.low_rank unpack models/elpv_vit_small/added.safetensors \
        --output build/elpv_vit_small/dense.safetensors

Without `--base` the pretrained weights are timm's. What was cut off is gone: judge and use
the unpacked model, not the one that was packed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from cyclopts import App
from safetensors.torch import save_file
from torch import Tensor

from slimdeploy.errors import InputError
from slimdeploy.files import atomic_path
from slimdeploy.slim.checkpoint import Checkpoint, save_weights
from tools.train_dense import make_model

app = App(help="Fine-tuned weights as low-rank additions to pretrained ones.")
LEFT, RIGHT = ".left", ".right"
State = dict[str, Tensor]


def factors(added: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`added` [out, in] as [out, rank] @ [rank, in], the closest there is (Eckart and Young)."""
    u, s, v = torch.linalg.svd(added.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).half(), (root[:, None] * v[:rank]).half()


def pack(base: State, tuned: State, rank: int) -> State:
    """What `tuned` adds to `base`: factors of matrices, all else whole, nothing where none."""
    kept: State = {}
    for key, value in tuned.items():
        start = base.get(key)
        if start is None or start.shape != value.shape:
            kept[key] = value.half()
        elif torch.equal(start.half(), value.half()):
            continue
        elif value.ndim == 2 and min(value.shape) > 2 * rank:  # not a head of few classes
            kept[key + LEFT], kept[key + RIGHT] = factors(value - start, rank)
        else:
            kept[key] = value.half()
    return kept


def unpack(base: State, kept: State) -> State:
    """The state that `pack` described, in float32."""
    state = {key: value.float() for key, value in base.items()}
    for key, value in kept.items():
        if key.endswith(LEFT):
            name = key.removesuffix(LEFT)
            state[name] = state[name] + value.float() @ kept[name + RIGHT].float()
        elif not key.endswith(RIGHT):
            state[key] = value.float()
    return state


def based_on(checkpoint: Checkpoint, base: Path | None) -> torch.nn.Module:
    """The pretrained model, at the checkpoint's input size and with a head of its classes."""
    preprocessing = checkpoint.preprocessing
    if preprocessing is None or "model" not in checkpoint.metadata:
        raise InputError(f"{checkpoint.path}: its metadata names no model and no preprocessing")
    classes = int(checkpoint.metadata["num_classes"])
    size = preprocessing.input_size[1]
    model: torch.nn.Module = make_model(checkpoint.metadata["model"], size, classes, base, 0.0)
    return model


@app.command(name="pack")
def pack_file(dense: Path, /, *, output: Path, base: Path | None = None, rank: int = 32) -> None:
    """Write what the weights in DENSE add to the pretrained ones."""
    checkpoint = Checkpoint.read(dense)
    kept = pack(based_on(checkpoint, base).state_dict(), checkpoint.state, rank)
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {key: value for key, value in checkpoint.metadata.items() if key != "slimdeploy"}
    text = {"slimdeploy": json.dumps(about, sort_keys=True)}
    with atomic_path(output) as temporary:
        save_file({k: v.contiguous() for k, v in kept.items()}, temporary, text)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


@app.command(name="unpack")
def unpack_file(packed: Path, /, *, output: Path, base: Path | None = None) -> None:
    """Write the whole weights that PACKED describes."""
    checkpoint = Checkpoint.read(packed)
    model = based_on(checkpoint, base)
    model.load_state_dict(unpack(model.state_dict(), checkpoint.state))
    output.parent.mkdir(parents=True, exist_ok=True)
    name, preprocessing = checkpoint.metadata["model"], checkpoint.preprocessing
    assert preprocessing is not None  # based_on has looked
    save_weights(model, output, name=name, preprocessing=preprocessing, dtype="float16")
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def main() -> int:
    """Run the command line; 2 where what it was given is of no use."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
