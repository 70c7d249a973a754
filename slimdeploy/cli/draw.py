"""`slimdeploy draw`: photographs with the patches that a slim model still computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy.cli.common import check_suffix, load_arrays, load_onnx, open_images, show
from slimdeploy.cli.numbers import Count, Seed
from slimdeploy.errors import InputError, requires
from slimdeploy.files import check_writable
from slimdeploy.macs import dense_macs, schedule_macs
from slimdeploy.schedule import KeepSchedule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slimdeploy.images import ImageFolder


def draw(
    keep_schedule: Path,
    *,
    data_dir: Path,
    slim: Path | None = None,
    split: str | None = None,
    images: Count = 4,
    seed: Seed = 0,
    output: Path = Path("kept_patches.png"),
    json: bool = False,
) -> None:
    """Draw which patches are still computed, layer by layer, on photographs of yours.

    Of a schedule that merges, each patch is drawn as the mean of those it is merged with.

    Args:
        keep_schedule: what each layer keeps.
        data_dir: images, labelled or not: a folder, or one with train/val/test inside.
        slim: the slim ONNX file; needed for a dynamic schedule, whose file chooses for each image.
        split: split of the data (test if there is one).
        images: photographs to draw; a row each.
        seed: which photographs.
        output: the PNG to write.
        json: print the result as JSON.
    """
    from slimdeploy.images import read_image
    from slimdeploy.report.kept_patches import draw_kept_patches

    check_writable(output, keep_schedule, slim)
    check_suffix("--output", output, ".png")
    schedule = KeepSchedule.read(keep_schedule)
    if slim is not None and schedule.dynamic is None:
        raise InputError(f"--slim: {keep_schedule} keeps the same patches for all images; leave it")
    folder = open_images(data_dir, split, "test", labelled=False).sample(images, seed)
    kept, groups = [schedule.keep] * len(folder), None
    if schedule.dynamic is not None:
        kept, groups = _chosen(schedule, keep_schedule, slim, folder)
    model = schedule.model
    draw_kept_patches(
        [read_image(file) for file in folder.files],
        kept,
        model.grid,
        len(model.prefix),
        output,
        groups=groups,
        preprocessing=schedule.preprocessing,
        macs=(schedule_macs(schedule).total, dense_macs(model).total),
    )
    files = [str(file) for file in folder.files]
    result = {"output": str(output), "images": files, "dynamic": schedule.dynamic is not None}
    show(result, f"wrote {output}: {len(files)} photographs", json)


def _chosen(
    schedule: KeepSchedule, path: Path, slim: Path | None, folder: ImageFolder
) -> tuple[list[list[list[int]]], list[list[NDArray[np.int64]]] | None]:
    """Per photograph and layer the ids that the file chooses; if it merges, each token's row too.

    Raises:
        InputError: without a file, or for one that was made with another schedule.
    """
    with requires("cpu"):
        import onnxruntime  # noqa: F401
    from slimdeploy.graph.dynamic import ChoicePlan
    from slimdeploy.measure.feeding import infer_all
    from slimdeploy.measure.image_ids import with_ids
    from slimdeploy.measure.proof import session

    plan, preprocessing = ChoicePlan.of(schedule), schedule.preprocessing
    assert plan is not None
    if slim is None:
        raise InputError(f"{path}: each image chooses its patches: give the file with --slim")
    if preprocessing is None:
        raise InputError(f"{path}: preprocessing: missing; the file cannot be run on photographs")
    try:
        probed, ids_of = with_ids(load_onnx(slim), plan)
    except InputError as error:
        raise InputError(f"{slim}: {error}") from error
    with session(probed, None) as engine:
        seen = infer_all(engine, load_arrays(folder, preprocessing))
    ids = ids_of(seen, len(folder))
    if [layer.shape[1] for layer in ids.kept] != list(plan.counts):
        raise InputError(f"{slim}: keeps other numbers of tokens than {path} says")
    photographs = range(len(folder))
    kept = [[layer[image].tolist() for layer in ids.kept] for image in photographs]
    if ids.rows is None:
        return kept, None
    return kept, [[layer[image] for layer in ids.rows] for image in photographs]
