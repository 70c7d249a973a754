"""`slimdeploy plan`: a schedule without data."""

from __future__ import annotations

from pathlib import Path

from slimdeploy import __version__
from slimdeploy.cli.common import command_line, show, summary, summary_table, weights_file
from slimdeploy.counts import Shape, counts_for_budget
from slimdeploy.errors import requires
from slimdeploy.files import check_writable
from slimdeploy.positions import Positions, keep_by_rank, rank_positions
from slimdeploy.schedule import KeepSchedule, Layer, Provenance


def plan(
    *,
    model: str,
    checkpoint: Path | None = None,
    mac_reduction: float = 0.46,
    shape: Shape = "geometric",
    positions: Positions = "grid",
    multiple_of: int = 1,
    seed: int = 0,
    num_classes: int | None = None,
    img_size: int | None = None,
    output: Path = Path("sched.json"),
    json: bool = False,
) -> None:
    """Write a data-free keep schedule: what slimming would gain, before any image is collected.

    Args:
        model: timm model name, as deit_tiny_patch16_224.
        checkpoint: the dense model's weights, to be named in the schedule.
        mac_reduction: the share of MACs to save.
        shape: how token counts fall over the layers.
        positions: which patches stay: an even grid, the centre, or a seeded random choice.
        multiple_of: round token counts to a multiple, as 8 or 16.
        seed: of random positions.
        num_classes: classes of the head, if not the model's own.
        img_size: the model's input size in pixels, if not its own.
        output: the keep schedule to write.
        json: print the result as JSON.
    """
    with requires("train"):
        from slimdeploy.slim.timm_models import load_geometry
    check_writable(output, checkpoint)
    kwargs = {} if img_size is None else {"img_size": img_size}
    geometry, preprocessing = load_geometry(model, checkpoint, num_classes, kwargs)
    counts = counts_for_budget(geometry, mac_reduction, shape, multiple_of)
    keep = keep_by_rank(geometry, rank_positions(geometry, positions, seed), counts)
    schedule = KeepSchedule(
        model=geometry,
        preprocessing=preprocessing,
        layers=tuple(Layer(keep=ids) for ids in keep),
        checkpoint=weights_file(checkpoint, output) if checkpoint else None,
        provenance=Provenance(
            slimdeploy=__version__,
            command=command_line(),
            seed=seed,
            impact=positions,
            shape=shape,
            mac_reduction=mac_reduction,
        ),
    )
    schedule.write(output)
    show({"schedule": str(output), **summary(schedule)}, summary_table(schedule), json)
