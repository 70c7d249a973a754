"""What fine-tuning is asked to do, at the bounds and past them, and what it learns unlabelled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimdeploy.errors import GateError, InputError, MissingError
from slimdeploy.slim.options import FinetuneOptions
from slimdeploy.slim.training import check_device
from tests.slim.test_finetune import batches, runner, same


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "--epochs 0: must be above 0"),
        ({"epochs": float("inf")}, "--epochs inf: must be at most 1000000"),
        ({"epochs": 1e308}, r"--epochs 1e\+308: must be at most 1000000"),
        ({"warmup_epochs": float("inf")}, "--warmup-epochs inf: must be at most"),
        ({"lr": 1e300}, r"--lr 1e\+300: must be at most"),
        ({"weight_decay": float("inf")}, "--weight-decay inf: must be at most"),
        ({"task_loss_weight": float("inf")}, "--task-loss-weight inf: must be at most"),
        ({"color_jitter": float("inf")}, "--color-jitter inf: must be at most 1000"),
        ({"kd_temperature": 1e-300}, "--kd-temperature 1e-300: must be at least 0.001"),
        ({"ema_decay": 1.0}, "--ema-decay 1.0: must be at least 0 and below 1"),
        ({"token_weight": -1.0}, "--token-weight -1.0: must be at least 0"),
        (
            {"task_loss_weight": 0.0, "distill_loss_weight": 0.0, "feature_weight": 0.0},
            "--task-loss-weight 0.0: with no other weight nothing is learned",
        ),
        ({"max_steps": 0}, "--max-steps 0: must be at least 1"),
        ({"save_every": 0}, "--save-every 0: must be at least 1"),
        ({"min_scale": 1.5}, "--min-scale 1.5: must be above 0 and at most 1"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
        ({"smoothing": 1.0}, "--smoothing 1.0: must be at least 0 and below 1"),
        ({"kd_temperature": 0.0}, "--kd-temperature 0.0: must be at least 0.001"),
        ({"color_jitter": -1.0}, "--color-jitter -1.0: must be at least 0"),
        ({"weight_decay": float("nan")}, "--weight-decay nan: must be at least 0"),
        ({"hflip": 7.0}, "--hflip 7.0: must be from 0 to 1"),
        ({"vflip": float("nan")}, "--vflip nan: must be from 0 to 1"),
        ({"ratio": (0.0, 1.0)}, "--ratio 0.0 1.0: must be two, above 0, the smaller first"),
        ({"ratio": (1.1, 0.9)}, "--ratio 1.1 0.9: must be two"),
        ({"ratio": (float("nan"), 1.0)}, "--ratio nan 1.0: must be two"),
        ({"layer_decay": 0.5}, "--layer-decay 0.5: goes with --no-relative-lr"),
        ({"token_layers": (2,)}, "--token-layers: goes with --token-weight, which is 0"),
    ],
)
def test_senseless_options_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FinetuneOptions(**fields)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match="--device toaster: not a torch device"):
        check_device("toaster")
    with pytest.raises(InputError, match="--device meta: computes nothing"):
        check_device("meta")


@pytest.mark.parametrize("name", ["mps", "xpu", "hpu", "cuda:99"])
def test_a_missing_device_is_said_to_be_missing(name: str) -> None:
    with pytest.raises(MissingError, match=f"--device {name}: torch .*; use --device cpu"):
        check_device(name)


@pytest.mark.parametrize("lr", [1e-6, 1e-5, 3e-4])
def test_the_warm_up_rises_to_the_peak(
    make_vit: Callable[..., Any], photographs: Path, lr: float
) -> None:
    run = runner(make_vit, photographs, relative_lr=False, lr=lr, warmup_epochs=1)
    rates = []
    for step in range(run.steps):
        rates.append(max(group["lr"] for group in run.optimiser.param_groups))
        run.scheduler.step_update(num_updates=step + 1)
    assert rates[0] == pytest.approx(min(1e-5, lr / 10))
    assert rates[0] < rates[1] < rates[2] < lr


def test_a_batch_cut_to_the_data_is_said(
    make_vit: Callable[..., Any], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runner(make_vit, photographs, batch_size=50)
    assert run.plan.batch_size == 24
    said = f"{photographs / 'train'}: 24 images there: a batch has 24, not the asked 50"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("lr", [True, False], ids=["relative", "absolute"])
def test_the_largest_options_compute(
    make_vit: Callable[..., Any], photographs: Path, lr: bool
) -> None:
    """Up to a loss that is no number: what the bounds let through ends in no traceback."""
    largest = dict.fromkeys(("lr", "weight_decay", "warmup_epochs", "clip_grad"), 1e6)
    losses = dict.fromkeys(("task_loss_weight", "distill_loss_weight", "feature_weight"), 1e6)
    more = {"color_jitter": 1000.0, "kd_temperature": 1000.0, "layer_decay": 0.8 if lr else 1e-300}
    run = runner(make_vit, photographs, relative_lr=lr, **largest, **losses, **more)
    with pytest.raises(GateError, match="the loss is"):
        run.run()


@pytest.mark.parametrize("task", [0.0, 1.0])
def test_labels_without_weight_are_not_read(
    make_vit: Callable[..., Any], photographs: Path, task: float
) -> None:
    run = runner(make_vit, photographs, task_loss_weight=task)
    images, target = next(iter(batches(run)))
    if task:
        with pytest.raises(RuntimeError):
            run.task(images, target + 99)
    else:
        assert "task_loss" not in run.task(images, target + 99)


def test_a_model_without_classes_learns_from_the_dense_ones_tokens(
    make_vit: Callable[..., Any], photographs: Path
) -> None:
    def headless(**kwargs: Any) -> Any:
        return make_vit(**{**kwargs, "num_classes": 0})

    run = runner(headless, photographs, task_loss_weight=0.0)
    parts = run.task(*next(iter(batches(run))))
    torch.testing.assert_close(parts["loss"], 2 * parts["feature_loss"])
    assert "kd_loss" not in parts
    before = headless().state_dict()
    assert not same(before, run.run().state_dict())
    with pytest.raises(InputError, match="--distill-loss-weight: the model has no classes"):
        runner(headless, photographs, task_loss_weight=0.0, feature_weight=0.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_said_to_be_missing() -> None:
    with pytest.raises(MissingError, match="torch sees no CUDA device"):
        check_device("cuda")
