"""Several processes that share each batch make the steps that one would (gloo, on the CPU)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slimdeploy.errors import GateError, InputError
from slimdeploy.slim.loading import Plan, PlannedBatches
from slimdeploy.slim.training import StateFile
from slimdeploy.slim.world import World, join_world
from tests.slim.killing import Killed, in_child
from tests.slim.test_resume import finetune

pytestmark = pytest.mark.forks


def run_together(words: list[str], processes: int = 2, code: int = 0) -> None:
    """Run a command as torchrun would, in processes forked from this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        group = {"WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank}
        group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if (child := os.fork()) == 0:
            os.environ.update({name: str(value) for name, value in group.items()})
            in_child(words, lambda: None)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [code] * processes


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: Path) -> float:
    """Distance of two results as a share of how far the training went."""
    begin = load_file(start)
    # A key's bias changes nothing, so its gradient is rounding, which Adam makes steps of.
    size = len(begin["norm.weight"])
    moved = wrong = 0.0
    for name, value in begin.items():
        differ, went = one[name] - other[name], one[name] - value
        if name.endswith("qkv.bias"):
            differ[size : 2 * size] = went[size : 2 * size] = 0
        wrong, moved = wrong + float(differ.square().sum()), moved + float(went.square().sum())
    return (wrong / moved) ** 0.5


def alone(checkpoint: Path, photographs: Path, folder: Path) -> Killed:
    return finetune(checkpoint, photographs, folder, "--save-every", 1)


def test_two_processes_make_the_steps_of_one(
    checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    run = alone(checkpoint, photographs, tmp_path)
    (tmp_path / "one.safetensors").write_bytes(run.files["slim.safetensors"])
    one = load_file(tmp_path / "one.safetensors")
    run.empty()
    run_together(run.words)
    two = load_file(run.folder / "slim.safetensors")
    assert {path.name for path in run.folder.iterdir()} == set(run.files)
    assert 0 < apart(one, two, checkpoint) < 1e-3

    # An unfinished run of one process is continued by two.
    run.kill_at_event(run.events // 2)  # most events are savings, one a step
    assert list(run.folder.glob(".*.state"))
    run_together(run.words)
    mixed = load_file(run.folder / "slim.safetensors")
    assert 0 < apart(one, mixed, checkpoint) < 1e-3


def said(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Lines on stderr but gloo's own and what is no error."""
    lines = capfd.readouterr().err.splitlines()
    return [line for line in lines if "error" in line or "Traceback" in line]


def test_what_the_first_process_refuses_all_do(
    checkpoint: Path, photographs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = alone(checkpoint, photographs, tmp_path)
    run.kill_at_event(run.events // 2)
    capfd.readouterr()
    run_together([*run.words, "--lr", "1e-4"], code=2)
    lines = said(capfd)
    assert len(lines) == 2
    assert all("is an unfinished run of other options" in line for line in lines)


def test_a_loss_that_is_no_number_ends_all(
    checkpoint: Path, photographs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = alone(checkpoint, photographs, tmp_path)
    run.empty()
    capfd.readouterr()
    run_together([*run.words, "--lr", "1e6", "--weight-decay", "1e6"], code=1)
    lines = said(capfd)
    assert len(lines) == 2
    assert all("try a lower --lr" in line for line in lines)
    assert not list(run.folder.iterdir())


def test_what_one_process_alone_refuses_is_one_line_of_the_other(
    checkpoint: Path,
    photographs: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = alone(checkpoint, photographs, tmp_path)
    run.empty()
    capfd.readouterr()

    def refuse(self: StateFile, state: object) -> None:
        if self.path is not None:
            raise GateError("the disk is full")

    monkeypatch.setattr(StateFile, "save", refuse)  # of the first process, while others train
    run_together(run.words, code=1)
    lines = said(capfd)
    assert len(lines) == 2
    assert sum("another process of this training ended first" in line for line in lines) == 1


def test_the_shares_of_a_batch_are_the_batch() -> None:
    plan = Plan(images=23, batch_size=6, seed=3)
    whole = list(PlannedBatches(plan, 2, 7))
    shares = [list(PlannedBatches(plan, 2, 7, rank, 3)) for rank in range(3)]
    assert len(whole) == 5
    for step, batch in enumerate(whole):
        assert sorted(key for share in shares for key in share[step]) == sorted(batch)
        assert {len(share[step]) for share in shares} == {2}


def test_every_epoch_has_its_own_order_without_repeats() -> None:
    plan = Plan(images=23, batch_size=6, seed=3)
    epochs = [[key for step in range(3) for key in plan.batch(3 * e + step)] for e in range(2)]
    for number, keys in enumerate(epochs):
        assert {epoch for epoch, _ in keys} == {number}
        assert len({image for _, image in keys}) == 18
    assert [image for _, image in epochs[0]] != [image for _, image in epochs[1]]


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(InputError, match="--batch-size 9: cannot be shared evenly by 2 processes"):
        World(torch.device("cpu"), 0, 2).check_batch(9)


def test_half_of_what_torchrun_sets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE is 2, but RANK"), join_world("cpu"):
        pass


@pytest.mark.slow
def test_torchrun_makes_the_same_steps(checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    run = alone(checkpoint, photographs, tmp_path)
    (tmp_path / "one.safetensors").write_bytes(run.files["slim.safetensors"])
    run.empty()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([sys.executable, *launch, "-m", "slimdeploy", *run.words], check=True)
    two = load_file(run.folder / "slim.safetensors")
    assert apart(load_file(tmp_path / "one.safetensors"), two, checkpoint) < 1e-3
