"""`slimdeploy finetune`: end-to-end recovery with distillation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slimdeploy.cli.common import (
    dense_weights,
    find_weights,
    open_images,
    require_timm,
    show,
    weights_file,
)
from slimdeploy.console import note
from slimdeploy.errors import InputError, requires
from slimdeploy.files import check_writable
from slimdeploy.images import ImageFolder
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule

if TYPE_CHECKING:
    from torch import nn


def finetune(
    *,
    keep_schedule: Path,
    data_dir: Path,
    checkpoint: Path | None = None,
    initial_checkpoint: Path | None = None,
    split: str | None = None,
    val_split: str | None = None,
    epochs: int = 5,
    batch_size: int = 32,
    relative_lr: bool = False,
    lr: float = 2e-4,
    weight_decay: float = 0.05,
    layer_decay: float = 0.8,
    warmup_epochs: float = 0.1,
    smoothing: float = 0.1,
    distill_loss_weight: float = 1.0,
    kd_temperature: float = 2.0,
    feature_weight: float = 2.0,
    min_scale: float = 0.7,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float = 0.2,
    workers: int = 2,
    seed: int = 0,
    device: str = "cpu",
    save_dtype: Literal["float32", "float16"] = "float32",
    output: Path = Path("slim.safetensors"),
    output_schedule: Path | None = None,
    json: bool = False,
) -> None:
    """Train the slim model end to end, distilling from the dense one. Resumes after a kill.

    Args:
        keep_schedule: the schedule that `slim` or `plan` wrote.
        data_dir: labelled images: an image folder, or one with train/val/test inside.
        checkpoint: the dense model's weights, the teacher (default: those the schedule names).
        initial_checkpoint: weights to start from (default: the schedule's refitted ones, else the
            dense model's).
        split: split to train on (train if there is one).
        val_split: split to report accuracy on after each epoch (none by default).
        epochs: passes over the data.
        batch_size: images a step.
        relative_lr: make steps in proportion to each parameter's own size, for models whose
            weights differ much in scale; then --lr 1e-4 is a change of 0.01 % a step.
        lr: peak learning rate; falls along a cosine.
        weight_decay: of the optimiser.
        layer_decay: learning rate's factor per block from the head down.
        warmup_epochs: epochs over which the learning rate rises.
        smoothing: of the labels.
        distill_loss_weight: weight of the dense model's logits as a target.
        kd_temperature: softmax temperature of those logits.
        feature_weight: weight of the tokens that the dense model's head reads as a target.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        min_scale: smallest share of the image's area that a random crop keeps.
        color_jitter: strength of brightness, contrast and saturation changes.
        workers: processes that load images.
        seed: of every random choice.
        device: torch device, as cpu or cuda.
        save_dtype: how the weights are stored.
        output: the weights to write, safetensors.
        output_schedule: also write the schedule again, naming these weights: `export` then needs
            no --checkpoint.
        json: print the result as JSON.
    """
    with requires("train"):
        from slimdeploy.slim.checkpoint import save_weights
        from slimdeploy.slim.finetune import Finetuner
        from slimdeploy.slim.timm_models import load_scheduled
        from slimdeploy.slim.training import FinetuneOptions
    schedule = KeepSchedule.read(keep_schedule)
    require_timm(schedule, keep_schedule, "training needs one made with slim or plan --model")
    dense = dense_weights(schedule, keep_schedule, checkpoint)
    initial = (
        initial_checkpoint
        or find_weights(schedule.slim_checkpoint, keep_schedule, "--initial-checkpoint")
        or dense
    )
    check_writable(output, keep_schedule, dense, initial)
    if output_schedule is not None:
        check_writable(output_schedule, dense, initial, output)
    teacher, preprocessing = load_scheduled(schedule, dense)
    start, _ = load_scheduled(schedule, initial)
    folder = open_images(data_dir, split, "train")
    folder.check_classes(schedule.model.num_classes, schedule.model.name)
    options = FinetuneOptions(
        epochs=epochs,
        batch_size=batch_size,
        relative_lr=relative_lr,
        lr=lr,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        warmup_epochs=warmup_epochs,
        smoothing=smoothing,
        distill_loss_weight=distill_loss_weight,
        kd_temperature=kd_temperature,
        feature_weight=feature_weight,
        scale=(min_scale, 1.0),
        hflip=hflip,
        vflip=vflip,
        color_jitter=color_jitter,
        workers=workers,
        seed=seed,
        device=device,
    )
    validation = ImageFolder.open(data_dir, val_split) if val_split else None
    if validation is not None and validation.classes != folder.classes:
        raise InputError(f"{validation.root}: has other class folders than {folder.root}")
    state = output.with_name(f".{output.name}.state")
    runner = Finetuner(
        teacher,
        start,
        schedule,
        folder,
        preprocessing,
        options,
        state,
        _validator(validation, preprocessing, device),
    )
    trained = runner.run()
    extra = {"keep_schedule": schedule.digest}
    save_weights(
        trained,
        output,
        name=schedule.model.name,
        preprocessing=preprocessing,
        extra=extra,
        dtype=save_dtype,
    )
    if output_schedule is not None:
        named = {"slim_checkpoint": weights_file(output, output_schedule)}
        if dense is not None:
            named["checkpoint"] = weights_file(dense, output_schedule)
        schedule.model_copy(update=named).write(output_schedule)
    runner.finished()
    result = {"checkpoint": str(output), "images": len(folder), **asdict(options)}
    show(result, f"wrote {output}", json)


def _validator(
    folder: ImageFolder | None, preprocessing: Preprocessing, device: str
) -> Callable[[nn.Module], str] | None:
    if folder is None:
        return None

    def validate(model: Any) -> str:
        from slimdeploy.slim.accuracy import torch_top1

        return f"{folder.root.name} top-1 {torch_top1(model, folder, preprocessing, device):.2%}"

    note(f"validating on {len(folder)} images after each epoch")
    return validate
