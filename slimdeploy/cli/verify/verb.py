"""`slimdeploy verify`: is this ONNX file what its schedule says?"""

from __future__ import annotations

from pathlib import Path

from slimdeploy.cli.numbers import Count, OptionalCount, Seed
from slimdeploy.errors import InputError


def verify(
    *,
    slim: Path,
    dense: Path | None = None,
    keep_schedule: Path | None = None,
    data_dir: Path | None = None,
    checkpoint: Path | None = None,
    split: str | None = None,
    images: Count = 64,
    seed: Seed = 0,
    tolerance: float | None = None,
    per_block: bool = True,
    pool_kept: bool = False,
    threads: OptionalCount = None,
    output: Path | None = None,
    json: bool = False,
) -> None:
    """Prove that a slim ONNX file computes what its schedule says; exit 1 if it does not.

    With --dense the reference is the dense ONNX file, in which every token is computed, and the
    dropped ones are masked out of each block's attention or the merged ones averaged: nothing of
    the slimmer takes part, and torch is not needed. Outputs are compared, and the residual stream
    after each block's attention and MLP, the kept tokens aligned. Without a schedule the two files
    must compute the same. Token counts, operators and selections of the file are checked as well. A
    record of all this is written beside the file.

    Without --dense the reference is the timm model in torch, on real images.

    Args:
        slim: the ONNX file.
        dense: the dense ONNX file that it was made from.
        keep_schedule: the schedule it was made with.
        data_dir: real images: an image folder, or one with train/val/test inside. With --dense
            they come in addition to random ones.
        checkpoint: without --dense: the weights it was made with (default: those its manifest or
            schedule names).
        split: split of the data (test if there is one).
        images: how many images to compare, of each kind.
        seed: of their draw.
        tolerance: largest difference allowed, as a share of the scale (default: 1e-4, with
            --dense 1e-2 if either file holds float16 weights and 5e-2 for bfloat16).
        per_block: compare the streams of every block too (this and the next three with --dense).
        pool_kept: the head pools over the kept tokens (default: as the schedule says).
        threads: CPU threads (default: all).
        output: the record to write (default: the ONNX file's name with .verify.json).
        json: print the record as JSON.
    """
    if tolerance is not None and not 0 < tolerance < 1:
        raise InputError(f"--tolerance {tolerance}: must be above 0 and below 1")
    if split is not None and data_dir is None:
        raise InputError("--split: goes with --data-dir")
    if dense is not None:
        from slimdeploy.cli.verify.against_dense import verify_dense
        from slimdeploy.cli.verify.check import Check

        if checkpoint is not None:
            raise InputError("--checkpoint: does not go with --dense, which holds the weights")
        check = Check(
            slim, dense, keep_schedule, data_dir, split, images, seed, tolerance, per_block,
            pool_kept, threads, output or slim.with_name(f"{slim.name}.verify.json"),
        )  # fmt: skip
        verify_dense(check, json)
        return
    from slimdeploy.cli.verify.against_timm import verify_torch
    from slimdeploy.measure.parity import DEFAULT_TOLERANCE

    if keep_schedule is None:
        raise InputError("give --dense, the ONNX file to compare with, or --keep-schedule")
    if data_dir is None:
        raise InputError("give --dense, the ONNX file to compare with, or --data-dir")
    _need_dense(
        pool_kept=pool_kept, threads=threads is not None, output=output is not None,
        no_per_block=not per_block,
    )  # fmt: skip
    tolerance = tolerance or DEFAULT_TOLERANCE
    verify_torch(slim, keep_schedule, data_dir, checkpoint, split, images, seed, tolerance, json)


def _need_dense(**given: bool) -> None:
    for name, is_given in given.items():
        if is_given:
            raise InputError(f"--{name.replace('_', '-')}: goes with --dense")
