"""`slimdeploy plan`: a schedule without data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from slimdeploy import __version__
from slimdeploy.cli.common import (
    check_suffix,
    check_weights_safe,
    command_line,
    separated,
    show,
    summary,
    summary_table,
    weights_file,
)
from slimdeploy.cli.numbers import Count, OptionalCount, Seed
from slimdeploy.cli.preprocessing import Pixels
from slimdeploy.counts import Shape, counts_for_budget
from slimdeploy.errors import InputError, requires
from slimdeploy.files import check_writable
from slimdeploy.positions import Positions, keep_by_rank, rank_positions
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule, Layer, ModelGeometry, Provenance


def plan(
    *,
    model: str | None = None,
    onnx: Path | None = None,
    checkpoint: Path | None = None,
    mac_reduction: float = 0.46,
    shape: Shape = "geometric",
    positions: Positions = "grid",
    multiple_of: Count = 1,
    seed: Seed = 0,
    pool_kept: bool = False,
    outputs: tuple[str, ...] = (),
    num_classes: OptionalCount = None,
    img_size: OptionalCount = None,
    pixels: Annotated[Pixels, Parameter(name="*", group="What an image goes through")] = Pixels(),  # noqa: B008 (frozen)
    output: Path = Path("sched.json"),
    json: bool = False,
) -> None:
    """Write a data-free keep schedule: what slimming would gain, before any image is collected.

    Args:
        model: timm model name, as deit_tiny_patch16_224.
        onnx: a dense ONNX file, instead of --model: its blocks, tokens and head are read from it,
            and torch is not needed.
        checkpoint: the dense model's weights, to be named in the schedule (with --model).
        mac_reduction: the share of MACs to save.
        shape: how token counts fall over the layers.
        positions: which patches stay: an even grid, the centre, or a seeded random choice.
        multiple_of: round token counts to a multiple, as 8 or 16.
        seed: of random positions.
        pool_kept: let a head that pools over all tokens pool over the kept ones (with --onnx).
        outputs: outputs of the ONNX file to keep, where it has more than the one that is wanted
            (with --onnx, as --mean and the three beside it).
        num_classes: classes of the head, if not the model's own (with --model).
        img_size: the model's input size in pixels, if not its own (with --model).
        output: the keep schedule to write.
        json: print the result as JSON.
    """
    check_writable(output, checkpoint, onnx)
    check_weights_safe(output, onnx)
    check_suffix("--output", output, ".json")
    if onnx is not None:
        if model is not None:
            raise InputError("--model: does not go with --onnx; give one of the two")
        _goes_with(
            "--model, not with --onnx",
            checkpoint=checkpoint, num_classes=num_classes, img_size=img_size,
        )  # fmt: skip
        pixels.check()
        geometry, preprocessing = _of_file(onnx, separated(outputs))
        preprocessing = pixels.over(preprocessing, geometry.input_size, onnx)
    elif model is not None:
        _goes_with(
            "--onnx, not with --model",
            pool_kept=pool_kept or None, outputs=outputs or None, **asdict(pixels),
        )  # fmt: skip
        geometry, preprocessing = _of_timm(model, checkpoint, num_classes, img_size)
    else:
        raise InputError("give --model NAME for a timm model, or --onnx FILE for a dense ONNX file")
    if not pool_kept and mac_reduction > 0:
        _refuse_pooling(geometry)
    counts = counts_for_budget(geometry, mac_reduction, shape, multiple_of)
    keep = keep_by_rank(geometry, rank_positions(geometry, positions, seed), counts)
    source = onnx or checkpoint
    made = Provenance(
        slimdeploy=__version__, command=command_line(), seed=seed,
        impact=positions, shape=shape, mac_reduction=mac_reduction,
    )  # fmt: skip
    schedule = KeepSchedule(
        model=geometry,
        preprocessing=preprocessing,
        pool_kept=pool_kept and bool(geometry.head_pools),
        layers=tuple(Layer(keep=ids) for ids in keep),
        checkpoint=weights_file(source, output) if source else None,
        provenance=made,
    )
    schedule.write(output)
    show({"schedule": str(output), **summary(schedule)}, summary_table(schedule), json)


def _goes_with(source: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')}: goes with {source}")


def _of_file(path: Path, outputs: tuple[str, ...]) -> tuple[ModelGeometry, Preprocessing | None]:
    from slimdeploy.cli.onnx_source import open_dense, require_droppable

    dense = open_dense(path, outputs)
    require_droppable(dense)
    return dense.geometry, dense.preprocessing


def _of_timm(
    model: str, checkpoint: Path | None, num_classes: int | None, img_size: int | None
) -> tuple[ModelGeometry, Preprocessing | None]:
    with requires("train"):
        from slimdeploy.slim.timm_models import load_geometry
    kwargs = {} if img_size is None else {"img_size": img_size}
    return load_geometry(model, checkpoint, num_classes, kwargs)


def _refuse_pooling(geometry: ModelGeometry) -> None:
    if geometry.head_pools:
        raise InputError(
            f"{geometry.name}: its head pools over {len(geometry.head_pools)} tokens; --pool-kept "
            "lets it pool over those that are kept, which is another function: evaluate it"
        )
