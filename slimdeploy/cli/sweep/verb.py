"""`slimdeploy sweep`: the front of accuracy, MACs and latency over budgets."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from slimdeploy import __version__
from slimdeploy.cli.common import command_line, open_images, show
from slimdeploy.cli.numbers import Count, Limit, OptionalCount, Ridge
from slimdeploy.cli.slim.flags import FileFlags, refuse, refuse_ridge
from slimdeploy.cli.sweep.points import SharedFlags, Timing, listed, open_folder, points_of
from slimdeploy.console import note
from slimdeploy.counts import ShapeChoice
from slimdeploy.errors import GateError, InputError, requires
from slimdeploy.files import check_writable, write_text
from slimdeploy.measure.sweep import DropBy
from slimdeploy.slim.choices import DEFAULT_IMPACT, SEARCH_IMAGES, Reconstruct

if TYPE_CHECKING:
    from slimdeploy.cli.sweep.run import Sweep, Swept
    from slimdeploy.cli.sweep.sources import Source
    from slimdeploy.images import ImageFolder
    from slimdeploy.measure.sweep import SweepGroup

PACKAGES = ("onnx", "onnxruntime", "numpy", "torch", "timm")


def sweep(
    *,
    model: str | None = None,
    onnx: Path | None = None,
    data_dir: Path,
    mac_reduction: str = "0.3,0.46,0.54,0.6",
    checkpoint: Path | None = None,
    impact: str | None = None,
    seeds: str = "0",
    split: str | None = None,
    calibration_split: str | None = None,
    shape: ShapeChoice = "geometric",
    multiple_of: Count = 1,
    reconstruct: Reconstruct = "refit",
    images: Count = 192,
    search_images: Count = SEARCH_IMAGES,
    ridge: Ridge = None,
    img_size: OptionalCount = None,
    latency: bool = True,
    batch_size: str = "1",
    threads: Count = 1,
    rounds: Count = 50,
    max_top1_drop: Limit = None,
    drop_by: DropBy = "mean",
    output: Path = Path("sweep"),
    file: Annotated[FileFlags, Parameter(name="*", group="With --onnx")] = FileFlags(),  # noqa: B008 (frozen)
    json: bool = False,
) -> None:
    """Draw the front: what accuracy and speed each budget of MACs leaves.

    Every point is a slim model that is searched, refitted, exported, proven against its reference,
    judged on all test images beside the dense model, and timed in turn with it. The folder holds
    each of them, ready to ship, with sweep.json and the picture, front.png and front.svg.

    A sweep that was killed goes on where it stopped when the same command is given again; budgets,
    impacts and seeds may be added then, and the latency.

    Args:
        model: timm model name, as deit_tiny_patch16_224.
        onnx: a dense ONNX file, instead of --model.
        data_dir: images with labels: an image folder, or one with train/val/test inside.
        mac_reduction: budgets: shares of MACs to save, with commas.
        checkpoint: the weights of --model; without them, timm's pretrained ones.
        impact: what ranks the tokens, several with commas (default: as `slim`); with predictor,
            key-norm, token-norm or merge each image decides for itself, as with `slim --dynamic`.
        seeds: of the draw of calibration images and all else, with commas.
        split: split of the data that judges (test if there is one).
        calibration_split: split that the search looks at, labels unread (train if there is one).
        shape: how a budget's token counts fall over the layers; auto chooses for each point.
        multiple_of: round token counts to a multiple, as 8 or 16.
        reconstruct: how the rest recovers, as in `slim`.
        images: calibration images to draw for each seed.
        search_images: how many of them the search looks at.
        ridge: strength of the refit's ridge, or `auto`, as `slim` takes it.
        img_size: the input size of --model in pixels, if not its own.
        latency: time dense and slim in turn; --no-latency leaves it out.
        batch_size: images a call when timing; several with commas.
        threads: of the runtime when timing.
        rounds: timed pairs at each batch size.
        max_top1_drop: name the smallest model whose top-1 is at most so many points below the dense
            one's; exit 1 if there is none.
        drop_by: what is judged so: the mean over the test images and seeds, or the lower end of its
            95 % interval.
        output: the folder to write into.
        json: print sweep.json as well.
    """
    if max_top1_drop is not None and max_top1_drop < 0:
        raise InputError(f"--max-top1-drop {max_top1_drop}: must be at least 0, in points")
    refuse_ridge(ridge, reconstruct)
    shared = SharedFlags(
        data_dir, calibration_split, shape, multiple_of, reconstruct, images, search_images, ridge
    )
    source = _source(model, onnx, checkpoint, img_size, file, shared)
    timing = _timing(batch_size, threads, rounds) if latency else None
    test = open_images(data_dir, split, "test")
    asked = _opened(source, mac_reduction, impact, seeds, test, output, timing)

    from slimdeploy.cli.sweep.run import run_sweep

    swept = run_sweep(asked)
    chosen = _chosen(swept, max_top1_drop, drop_by)
    _write(asked, swept, chosen, (max_top1_drop, drop_by), json)
    if max_top1_drop is not None and chosen is None:
        raise GateError(
            f"{output / 'sweep.json'}: no point is within {max_top1_drop:g} points of the dense "
            f"model's top-1 (by the {_by(drop_by)})"
        )


def _source(
    model: str | None,
    onnx: Path | None,
    checkpoint: Path | None,
    img_size: int | None,
    file: FileFlags,
    shared: SharedFlags,
) -> Source:
    if onnx is not None:
        refuse("--onnx", model=model, checkpoint=checkpoint, img_size=img_size)
        from slimdeploy.cli.sweep.from_onnx import OnnxSource

        return OnnxSource(onnx, shared, file)
    if model is None:
        raise InputError("give --model NAME for a timm model, or --onnx FILE for a dense ONNX file")
    file.refuse()
    with requires("train"):
        from slimdeploy.cli.sweep.from_timm import TimmSource

    return TimmSource(model, checkpoint, img_size, shared)


def _timing(batch_size: str, threads: int, rounds: int) -> Timing:
    sizes = listed("--batch-size", batch_size, int, "1,8")
    if min(sizes) < 1 or rounds < 2:
        raise InputError(f"--batch-size {batch_size}, --rounds {rounds}: must be at least 1 and 2")
    return Timing(sizes, threads, rounds)


def _opened(
    source: Source,
    mac_reduction: str,
    impact: str | None,
    seeds: str,
    test: ImageFolder,
    output: Path,
    timing: Timing | None,
) -> Sweep:
    """Everything that can be found wrong before work begins is found here."""
    from slimdeploy.cli.sweep.run import Sweep
    from slimdeploy.cli.sweep.sources import check_batch, check_points

    with requires("cpu"):
        import onnxruntime  # noqa: F401
    with requires("report"):
        import matplotlib  # noqa: F401

    points = points_of(
        listed("--mac-reduction", mac_reduction, float, "0.3,0.46"),
        listed("--impact", impact or DEFAULT_IMPACT, str, "cover,grid"),
        listed("--seeds", seeds, int, "0,1"),
    )
    check_points(source, points)
    if timing is not None:
        check_batch(source, timing.batch_sizes)
    shared = source.shared
    if source.geometry.num_classes:
        test.check_classes(source.geometry.num_classes, source.geometry.name)
    looked_at = open_images(shared.data_dir, shared.split, "train", labelled=False)
    if looked_at.root == test.root:
        note(f"{test.root}: calibration and test images are the same folder")
    settings = {
        "slimdeploy": __version__,
        **source.identity,
        "preprocessing": source.preprocessing.model_dump(mode="json"),
        **shared.to_json(),
        "test_images": test.digest(),
    }
    open_folder(output, settings)
    for name in ("sweep.json", "front.png", "front.svg", "dense.json", "dense.npz"):
        check_writable(output / name, *source.inputs)
    return Sweep(source, points, output, test, timing, settings)


def _chosen(swept: Swept, max_drop: float | None, by: DropBy) -> SweepGroup | None:
    from slimdeploy.measure.sweep import smallest_within

    return None if max_drop is None else smallest_within(swept.groups, max_drop, by)


def _write(
    asked: Sweep,
    swept: Swept,
    chosen: SweepGroup | None,
    gate: tuple[float | None, DropBy],
    as_json: bool,
) -> None:
    from slimdeploy.cli.sweep.record import sweep_record
    from slimdeploy.macs import dense_macs
    from slimdeploy.report.front import DenseReference, draw_front
    from slimdeploy.report.front_table import front_table

    record = sweep_record(asked, swept, chosen, gate, command_line(), PACKAGES)
    whole = dense_macs(asked.source.geometry).total
    reference = DenseReference(swept.dense.top1, whole, asked.source.geometry.name)
    pictures = [asked.folder / name for name in ("front.png", "front.svg")]
    write_text(asked.folder / "sweep.json", json_module.dumps(record, indent=2) + "\n")
    draw_front(swept.groups, reference, swept.dense.n, pictures)
    remarks = [_remark(chosen, gate)] if chosen is not None else []
    remarks.append(f"wrote {asked.folder / 'sweep.json'}, front.png and front.svg")
    table = front_table(swept.groups, swept.dense, whole, swept.protocol, remarks)
    show(record, table, as_json)


def _remark(chosen: SweepGroup, gate: tuple[float | None, DropBy]) -> str:
    file = chosen.points[0].files["onnx"]
    return (
        f"smallest within {gate[0]:g} points (by the {_by(gate[1])}): {chosen.title}: {file}, "
        f"{100 * chosen.difference:+.2f} points ({100 * chosen.interval.low:+.1f} to "
        f"{100 * chosen.interval.high:+.1f}); chosen on these images: judge it on others"
    )


def _by(drop_by: DropBy) -> str:
    return "mean" if drop_by == "mean" else "lower end of the 95 % interval"
