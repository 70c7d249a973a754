"""Fine-tuning: it learns, it resumes to the same weights, it refuses broken images in one line."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from slimdeploy.errors import GateError, InputError
from slimdeploy.images import ImageFolder
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule, Layer, Provenance
from slimdeploy.slim.amp import attention_for_gradients
from slimdeploy.slim.finetune import Finetuner
from slimdeploy.slim.loading import Plan, PlannedBatches, make_loader
from slimdeploy.slim.options import FinetuneOptions
from slimdeploy.slim.timm_models import describe
from slimdeploy.slim.training import StateFile

PREPROCESSING = Preprocessing(
    input_size=(3, 64, 64),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation="bilinear",
    crop_pct=1.0,
    crop_mode="center",
)
KEEP = [list(range(17)), [0, *range(1, 17, 2)], [0, 3, 7, 11, 15], [0]]


def runner(
    make_vit: Callable[..., Any], folder: Path, state: Path | None = None, **options: Any
) -> Finetuner:
    dense = make_vit(num_classes=2)
    schedule = KeepSchedule(
        model=describe(dense, "small"),
        layers=tuple(Layer(keep=tuple(ids)) for ids in KEEP),
        provenance=Provenance(slimdeploy="test"),
    )
    fields = {"epochs": 2, "batch_size": 8, "workers": 0, "lr": 1e-3, **options}
    data = ImageFolder.open(folder, "train")
    return Finetuner(dense, dense, schedule, data, PREPROCESSING, FinetuneOptions(**fields), state)


def batches(run: Finetuner, first: int = 0) -> Any:
    steps = PlannedBatches(run.plan, first, run.steps)
    return make_loader(run.data, run.preprocessing, run.options, steps)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(other[name], value) for name, value in one.items())


def test_the_dense_model_does_not_run_for_labels_alone(
    make_vit: Callable[..., Any], photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = runner(make_vit, photographs, distill_loss_weight=0.0, feature_weight=0.0)
    taught = runner(make_vit, photographs, distill_loss_weight=0.0, feature_weight=0.1)
    asked: list[int] = []
    for run in (alone, taught):
        ask = run.task._ask_teacher
        monkeypatch.setattr(
            run.task, "_ask_teacher", lambda x, ask=ask: asked.append(len(x)) or ask(x)
        )
        images, target = next(iter(batches(run)))
        parts = run.task(images, target)
        assert ("kd_loss" in parts) == (run is taught)
        expected = parts["task_loss"] + (0.1 * parts["feature_loss"] if run is taught else 0)
        torch.testing.assert_close(parts["loss"], expected)
    assert asked == [8]


def test_the_dense_model_alone_can_teach(make_vit: Callable[..., Any], photographs: Path) -> None:
    run = runner(make_vit, photographs, task_loss_weight=0.0, smoothing=0.0)
    images, target = next(iter(batches(run)))
    for labels in (target, 1 - target):
        parts = run.task(images, labels)
        torch.testing.assert_close(parts["loss"], parts["kd_loss"] + 2 * parts["feature_loss"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_training_kernel_computes_the_same_attention(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 16, dtype=dtype, requires_grad=True) for n in (5, 9, 9))
    cpu, before = torch.device("cpu"), torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    found = []
    for kernel in (nullcontext(), attention_for_gradients(cpu)):
        with kernel:
            out = nn.functional.scaled_dot_product_attention(q, k, v)
        found.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for fused, separate in zip(*found, strict=True):
        torch.testing.assert_close(separate, fused, rtol=tolerance, atol=tolerance)
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == before


@pytest.mark.parametrize("amp_dtype", ["float32", "bfloat16", "float16"])
def test_training_lowers_the_loss_and_leaves_the_teacher_alone(
    make_vit: Callable[..., Any], photographs: Path, amp_dtype: str
) -> None:
    run = runner(make_vit, photographs, epochs=6, amp_dtype=amp_dtype)
    before = {name: value.clone() for name, value in run.dense.state_dict().items()}
    losses = [run._step(step, *batch) for step, batch in enumerate(batches(run), start=1)]
    assert len(losses) == 18
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert same(run.dense.state_dict(), before)
    assert all(p.dtype is torch.float32 for p in run.student.parameters())


def test_it_is_judged_before_training_and_after_each_epoch(
    make_vit: Callable[..., Any], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, images = runner(make_vit, photographs), torch.ones(1, 3, 64, 64)
    begin, seen = run.slim.eval()(images).detach(), list[torch.Tensor]()

    def evaluate(model: nn.Module) -> str:
        seen.append(model(images).detach())
        return f"judged {len(seen)}"

    run.evaluate = evaluate
    run.run()
    lines = [line for line in capsys.readouterr().err.splitlines() if "judged" in line]
    assert [line.partition(" ")[0] for line in lines] == ["before", "epoch", "epoch"]
    assert torch.equal(seen[0], begin)
    assert not torch.equal(seen[1], begin)


def test_half_precision_trains_to_nearly_the_same_weights(
    make_vit: Callable[..., Any], photographs: Path
) -> None:
    exact, half = (
        runner(make_vit, photographs, amp_dtype=amp_dtype).run().state_dict()
        for amp_dtype in ("float32", "bfloat16")
    )
    start = make_vit(num_classes=2).state_dict()
    moved = sum(float((exact[n] - start[n]).square().sum()) for n in start)
    apart = sum(float((exact[n] - half[n]).square().sum()) for n in start)
    assert 0 < apart < 0.1 * moved


@pytest.mark.parametrize(
    ("fields", "steps"),
    [({"epochs": 2}, 6), ({"epochs": 0.3}, 1), ({"epochs": 1.7}, 5), ({"max_steps": 4}, 4)],
)
def test_a_run_may_be_shorter_than_its_data(
    make_vit: Callable[..., Any], photographs: Path, fields: dict[str, Any], steps: int
) -> None:
    run = runner(make_vit, photographs, **fields)
    made = []
    step = run._step
    run._step = lambda *words: made.append(words[0]) or step(*words)  # type: ignore[method-assign,func-returns-value]
    run.run()
    assert made == list(range(1, steps + 1))
    assert run.optimiser.param_groups[0]["lr"] < 0.2 * run.options.lr, "the cosine has ended"


def test_a_full_disk_is_one_line_and_spares_the_last_state(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "run.state", "this run")
    file.save({"step": 1})
    if (child := os.fork()) == 0:  # the limit cannot be taken back
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            file.save({"step": 2, "weights": torch.zeros(10000)})
        except InputError as error:
            os._exit(0 if "run.state: the unfinished run cannot be saved" in str(error) else 2)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run.state"]
    assert (file.read() or {})["step"] == 1


def test_another_runs_state_is_neither_used_nor_overwritten(
    make_vit: Callable[..., Any], photographs: Path, tmp_path: Path
) -> None:
    state = tmp_path / "run.state"
    runner(make_vit, photographs, state, epochs=1).run()
    assert runner(make_vit, photographs, state, epochs=1)._resume() == 3
    before = state.read_bytes()
    with pytest.raises(InputError, match=r"run\.state: is an unfinished run of other options"):
        runner(make_vit, photographs, state, epochs=1, lr=1e-4).run()
    assert state.read_bytes() == before


def test_a_diverged_run_is_not_saved(
    make_vit: Callable[..., Any], photographs: Path, tmp_path: Path
) -> None:
    options = {"lr": 1e6, "weight_decay": 1e6, "warmup_epochs": 0, "save_every": 1}
    state = tmp_path / "run.state"
    run = runner(make_vit, photographs, state, **options)
    saved: list[int] = []
    save = run._save
    run._save = lambda step: (saved.append(step), save(step))[0]  # type: ignore[method-assign]
    with pytest.raises(GateError, match=r"the loss is nan in epoch \d; try a lower --lr"):
        run.run()
    assert saved, "and what is there of a ruined run would refuse a lower --lr"
    assert not list(tmp_path.iterdir())
    assert runner(make_vit, photographs, state)._resume() == 0


def test_the_last_step_is_judged_too(
    make_vit: Callable[..., Any], photographs: Path, tmp_path: Path
) -> None:
    run = runner(make_vit, photographs, tmp_path / "run.state", max_steps=3)
    step = run._step

    def explode(number: int, *batch: torch.Tensor) -> float:
        loss = step(number, *batch)
        if number == 3:
            run.student.blocks[1].mlp.fc2.weight.data.fill_(float("nan"))
        return loss

    run._step = explode  # type: ignore[method-assign]
    with pytest.raises(GateError, match="the loss is nan after the last step; try a lower --lr"):
        run.run()
    assert not list(tmp_path.iterdir())


def test_a_damaged_state_starts_anew(
    make_vit: Callable[..., Any], photographs: Path, tmp_path: Path
) -> None:
    state = tmp_path / "run.state"
    state.write_bytes(b"not a state")
    assert runner(make_vit, photographs, state)._resume() == 0


@pytest.mark.filterwarnings("error:This DataLoader will create")
def test_no_more_processes_load_images_than_there_are_cores(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    data, options = ImageFolder.open(photographs, "train"), FinetuneOptions(workers=8)
    batches = PlannedBatches(Plan.of(len(data), options), 0, 1)
    assert make_loader(data, PREPROCESSING, options, batches).num_workers == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_one_line(
    make_vit: Callable[..., Any], photographs: Path, tmp_path: Path, workers: int
) -> None:
    import shutil

    shutil.copytree(photographs, tmp_path / "data")
    broken = tmp_path / "data" / "train" / "dark" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InputError) as caught:
        runner(make_vit, tmp_path / "data", workers=workers).run()
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_relative_steps_are_in_proportion_to_each_parameter(
    make_vit: Callable[..., Any], photographs: Path
) -> None:
    run = runner(make_vit, photographs, epochs=1, relative_lr=True, lr=1e-3, warmup_epochs=0)
    before = {name: value.detach().clone() for name, value in run.student.named_parameters()}
    run.scheduler.step_update(num_updates=1)
    run._step(1, *next(iter(batches(run))))
    for name, value in run.student.named_parameters():
        step = float((value - before[name]).detach().abs().max())
        size = float(before[name].square().mean().sqrt().clamp(1e-4, 1.0))
        assert 0 < step < 1.2 * 1e-3 * size, name


def test_absolute_steps_shrink_from_the_head_down(
    make_vit: Callable[..., Any], photographs: Path
) -> None:
    fields = {"epochs": 1, "lr": 1e-3, "layer_decay": 0.5, "warmup_epochs": 0}
    run = runner(make_vit, photographs, relative_lr=False, **fields)
    names = [f"blocks.{index}.attn.proj.weight" for index in range(4)]
    weights = [run.student.get_parameter(name) for name in names]
    before = [weight.detach().clone() for weight in weights]
    run.scheduler.step_update(num_updates=1)
    run._step(1, *next(iter(batches(run))))
    moved = [float((w - b).detach().abs().max()) for w, b in zip(weights, before, strict=True)]
    for lower, upper in pairwise(moved):
        assert lower == pytest.approx(upper / 2, rel=0.05)
