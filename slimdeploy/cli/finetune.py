"""`slimdeploy finetune`: end-to-end recovery with distillation."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from slimdeploy.cli.common import (
    check_suffix,
    dense_weights,
    find_weights,
    open_images,
    require_timm,
    show,
    weights_file,
    write_schedule,
)
from slimdeploy.console import note
from slimdeploy.errors import InputError, requires
from slimdeploy.files import check_writable
from slimdeploy.images import ImageFolder
from slimdeploy.schedule import KeepSchedule, WeightsFile
from slimdeploy.slim.options import AmpDtype, FinetuneOptions

if TYPE_CHECKING:
    from torch import nn

    from slimdeploy.preprocessing import Preprocessing
    from slimdeploy.slim.types import Vit
    from slimdeploy.slim.world import World


def finetune(
    *,
    keep_schedule: Path,
    data_dir: Path,
    checkpoint: Path | None = None,
    initial_checkpoint: Path | None = None,
    split: str | None = None,
    val_split: str | None = None,
    training: Annotated[FinetuneOptions, Parameter(name="*", group="Training")] = FinetuneOptions(),  # noqa: B008
    save_dtype: Literal["float32", "float16"] = "float32",
    output: Path = Path("slim.safetensors"),
    output_schedule: Path | None = None,
    json: bool = False,
) -> None:
    """Train the slim model end to end, distilling from the dense one. Resumes after a kill.

    Started by torchrun, several processes share each batch and make the same steps as one would.

    Args:
        keep_schedule: the schedule that `slim` or `plan` wrote.
        data_dir: images: a folder of class folders, or one with train/val/test inside. With
            --task-loss-weight 0 they need no labels: a flat folder does, and a model without
            classes can be trained.
        checkpoint: the dense model's weights, the teacher (default: those the schedule names).
        initial_checkpoint: weights to start from (default: the schedule's refitted ones, else the
            dense model's).
        split: split to train on (train if there is one).
        val_split: split to report accuracy on, before training and after each epoch (none by
            default).
        save_dtype: how the weights are stored.
        output: the weights to write, safetensors.
        output_schedule: also write the schedule again, naming these weights: `export` then needs
            no --checkpoint.
        json: print the result as JSON.
    """
    with requires("train"):
        from slimdeploy.slim.world import join_world
    job = _Job.read(keep_schedule, checkpoint, initial_checkpoint)
    job.check_outputs(output, output_schedule)
    labelled = training.task_loss_weight > 0
    folder = job.open_training(data_dir, split, labelled)
    validation = job.open_validation(data_dir, val_split, folder if labelled else None)
    with join_world(training.device) as world:
        batch_size = _train(
            job, folder, validation, training, world, save_dtype, output, output_schedule
        )
        leads = world.leads
    if leads:
        used = {"images": len(folder), **asdict(training), "batch_size": batch_size}
        show({"checkpoint": str(output), **used}, f"wrote {output}", json)


@dataclass(frozen=True)
class _Job:
    """The files that a fine-tuning reads."""

    schedule: KeepSchedule
    path: Path
    dense: Path | None
    initial: Path | None

    @classmethod
    def read(cls, path: Path, checkpoint: Path | None, initial: Path | None) -> _Job:
        schedule = KeepSchedule.read(path)
        require_timm(schedule, path, "training needs one made with slim or plan --model")
        dense = dense_weights(schedule, path, checkpoint)
        refitted = initial or find_weights(schedule.slim_checkpoint, path, "--initial-checkpoint")
        return cls(schedule, path, dense, refitted or dense)

    def check_outputs(self, output: Path, output_schedule: Path | None) -> None:
        # What the schedule names, even where other weights are given: without it it is of no use.
        named = (self.schedule.checkpoint, self.schedule.slim_checkpoint)
        files = [self.path.parent / weights.path for weights in named if weights is not None]
        check_writable(output, self.path, self.dense, self.initial, *files)
        check_suffix("--output", output, ".safetensors")
        if output_schedule is not None:
            # Of the schedule itself: a command given again after a kill would read what it wrote.
            check_writable(output_schedule, self.path, self.dense, self.initial, output)
            check_suffix("--output-schedule", output_schedule, ".json")

    def open_training(self, data_dir: Path, split: str | None, labelled: bool) -> ImageFolder:
        model = self.schedule.model
        if labelled and not model.num_classes:
            raise InputError(
                f"{model.name}: has no classes to learn labels with; --task-loss-weight 0 lets the "
                "dense model alone teach"
            )
        folder = open_images(data_dir, split, "train", labelled=labelled)
        if labelled:
            folder.check_classes(model.num_classes, model.name)
        return folder

    def open_validation(
        self, data_dir: Path, split: str | None, trained_on: ImageFolder | None
    ) -> ImageFolder | None:
        if split is None:
            return None
        model = self.schedule.model
        if not model.num_classes:
            raise InputError(f"--val-split: {model.name} has no classes, so no accuracy")
        folder = ImageFolder.open(data_dir, split)
        folder.check_classes(model.num_classes, model.name)
        if trained_on is not None and folder.classes != trained_on.classes:
            raise InputError(f"{folder.root}: has other class folders than {trained_on.root}")
        if os.environ.get("RANK", "0") == "0":  # torchrun starts this in every process
            note(f"validating on {len(folder)} images, before training and after each epoch")
        return folder


def _train(
    job: _Job,
    folder: ImageFolder,
    validation: ImageFolder | None,
    options: FinetuneOptions,
    world: World,
    save_dtype: Literal["float32", "float16"],
    output: Path,
    output_schedule: Path | None,
) -> int:
    """Train and write; the images a batch, of which small data has fewer than were asked for."""
    from slimdeploy.slim.amp import slower_than_float32
    from slimdeploy.slim.finetune import Finetuner
    from slimdeploy.slim.timm_models import load_scheduled

    if world.leads and slower_than_float32(world.device, options.amp_dtype):
        note(f"--amp-dtype {options.amp_dtype}: this processor emulates it; float32 is faster here")
    teacher, preprocessing = load_scheduled(job.schedule, job.dense)
    start, _ = load_scheduled(job.schedule, job.initial)
    runner = Finetuner(
        teacher,
        start,
        job.schedule,
        folder,
        preprocessing,
        options,
        output.with_name(f".{output.name}.state"),
        _validator(validation, preprocessing, str(world.device), options.amp_dtype),
        world=world,
    )
    trained = runner.run()
    if world.leads:
        _write(trained, job, preprocessing, save_dtype, output, output_schedule)
        runner.finished()
    return runner.plan.batch_size


def _write(
    trained: Vit,
    job: _Job,
    preprocessing: Preprocessing,
    save_dtype: Literal["float32", "float16"],
    output: Path,
    output_schedule: Path | None,
) -> None:
    from slimdeploy.slim.checkpoint import save_weights

    saved: dict[str, Any] = {
        "name": job.schedule.model.name,
        "preprocessing": preprocessing,
        "extra": {"keep_schedule": job.schedule.digest},
        "dtype": save_dtype,
    }
    if output_schedule is None:
        save_weights(trained, output, **saved)
        return
    named = {} if job.dense is None else {"checkpoint": weights_file(job.dense, output_schedule)}

    def make(weights: WeightsFile | None) -> KeepSchedule:
        return job.schedule.model_copy(update={**named, "slim_checkpoint": weights})

    write_schedule(output_schedule, output, trained, make, **saved)


def _validator(
    folder: ImageFolder | None, preprocessing: Preprocessing, device: str, amp_dtype: AmpDtype
) -> Callable[[nn.Module], str] | None:
    if folder is None:
        return None

    def validate(model: Any) -> str:
        from slimdeploy.slim.accuracy import torch_top1

        top1 = torch_top1(model, folder, preprocessing, device, amp_dtype)
        return f"{folder.root.name} top-1 {top1:.2%}"

    return validate
