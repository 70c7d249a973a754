"""`slimdeploy slim`: which patches each layer needs; from a timm model, or from an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy import __version__
from slimdeploy.cli.common import (
    command_line,
    load_arrays,
    open_images,
    separated,
    show,
    summary,
    summary_table,
    weights_file,
)
from slimdeploy.console import note, progress_bar
from slimdeploy.counts import Shape
from slimdeploy.errors import InputError, requires
from slimdeploy.files import check_writable
from slimdeploy.forward.choices import ForwardImpact
from slimdeploy.graph.options import Select
from slimdeploy.preprocessing import Interpolation
from slimdeploy.schedule import KeepSchedule, Provenance
from slimdeploy.slim.choices import ImpactName, Reconstruct

if TYPE_CHECKING:
    from slimdeploy.images import ImageFolder
    from slimdeploy.slim.pipeline import SlimRequest


def slim(
    *,
    model: str | None = None,
    onnx: Path | None = None,
    data_dir: Path,
    checkpoint: Path | None = None,
    split: str | None = None,
    mac_reduction: float | None = None,
    tolerance: float | None = None,
    shape: Shape = "geometric",
    multiple_of: int = 1,
    impact: ImpactName | ForwardImpact | None = None,
    reconstruct: Reconstruct = "refit",
    images: int = 192,
    search_images: int = 64,
    step: int | None = None,
    ridge: float = 1.0,
    seed: int = 0,
    img_size: int | None = None,
    select: Select | None = None,
    optimize: bool = False,
    outputs: tuple[str, ...] = (),
    pool_kept: bool = False,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    interpolation: Interpolation = "bicubic",
    crop_pct: float = 1.0,
    output: Path | None = None,
    output_schedule: Path | None = None,
    output_checkpoint: Path | None = None,
    json: bool = False,
) -> None:
    """Search which patches each layer needs, last layer first, on unlabelled images.

    From --model, a timm model: the result is a keep schedule and refitted weights, for `export`.
    A run that was killed goes on where it stopped when the same command is given again.

    From --onnx, any dense vision transformer's file: torch is not needed, forward passes choose
    the patches and refit the weights, and the result is the slim file itself, beside its schedule.

    Args:
        model: timm model name, as deit_tiny_patch16_224.
        onnx: a dense ONNX file, instead of --model.
        data_dir: calibration images: an image folder, or one with train/val/test inside.
        checkpoint: the dense model's weights; without them, timm's pretrained ones.
        split: split of the data to calibrate on (train if there is one).
        mac_reduction: budget: the share of MACs to save, as 0.46.
        tolerance: in place of a budget, the paper's epsilon: relative error allowed per layer.
        shape: how a budget's token counts fall over the layers.
        multiple_of: round token counts to a multiple, as 8 or 16.
        impact: what ranks the tokens (default: joint; with --onnx, where joint is not to be had,
            grid); path is the paper's score; cover, only with --onnx, keeps what the others are
            predicted from; grid, centre and random look at no image.
        reconstruct: how the rest recovers: refit (closed form), gradient (as in the paper), none.
        images: calibration images to draw, all of which the refit uses.
        search_images: how many of them the search looks at.
        step: with a tolerance, tokens added per candidate (the paper's r'; default 10).
        ridge: strength of the refit's ridge, in mean diagonals of its normal matrix.
        seed: of every random choice.
        img_size: the model's input size in pixels, if not its own.
        select: with --onnx, how a selection of tokens is written, as in `export`.
        optimize: with --onnx, rewrite the graph to compute the same with less work.
        outputs: outputs of --onnx to keep, where it has more than the one that is wanted.
        pool_kept: with --onnx, let a head that pools over all tokens pool over the kept ones.
        mean: what the images of --onnx are normalised by (default: as its manifest says).
        std: likewise.
        interpolation: how its images are resized.
        crop_pct: the share of the resized image's shorter edge that the central crop keeps.
        output: the keep schedule to write (sched.json); with --onnx, the slim file (slim.onnx).
        output_schedule: with --onnx, the keep schedule to write (default: beside the slim file).
        output_checkpoint: the recovered weights to write (default: beside the schedule); with
            --onnx, a dense file with these weights, from which `export` makes other forms and
            against which `verify` proves the slim one (default: none).
        json: print the result as JSON.
    """
    if onnx is not None:
        from slimdeploy.cli.slim_onnx import OnnxSlim, slim_file

        _refuse(
            "--onnx", model=model, checkpoint=checkpoint, tolerance=tolerance, step=step,
            img_size=img_size,
        )  # fmt: skip
        wanted = OnnxSlim(
            data_dir, split, mac_reduction, shape, multiple_of, impact, reconstruct, images,
            search_images, ridge, seed, select or "gather", optimize, separated(outputs), pool_kept,
            mean, std, interpolation, crop_pct,
        )  # fmt: skip
        written = output or Path("slim.onnx")
        slim_file(onnx, wanted, written, output_schedule, output_checkpoint, json)
        return
    if model is None:
        raise InputError("give --model NAME for a timm model, or --onnx FILE for a dense ONNX file")
    _refuse(
        "--model", select=select, optimize=optimize or None, outputs=outputs or None,
        pool_kept=pool_kept or None, mean=mean, std=std, output_schedule=output_schedule,
    )  # fmt: skip
    with requires("train"):
        from slimdeploy.slim import timm_models  # noqa: F401
        from slimdeploy.slim.pipeline import SlimRequest
        from slimdeploy.slim.refit import RefitOptions

    request = SlimRequest(
        mac_reduction=mac_reduction,
        tolerance=tolerance,
        shape=shape,
        multiple_of=multiple_of,
        impact=_with_gradients(impact or "joint"),
        reconstruct=reconstruct,
        step=10 if step is None else step,
        seed=seed,
        search_images=search_images,
        refit=RefitOptions(strength=ridge),
    )
    output = output or Path("sched.json")
    kwargs = {} if img_size is None else {"img_size": img_size}
    weights = output_checkpoint or output.with_suffix(".safetensors")
    check_writable(output, checkpoint)
    check_writable(weights, checkpoint, output)
    folder = open_images(data_dir, split, "train", labelled=False).sample(images, seed)
    if len(folder) < images:
        note(f"{folder.root}: only {len(folder)} images there, {images} were asked for")
    schedule = _run(request, model, checkpoint, kwargs, folder, output, weights)
    show({"schedule": str(output), **summary(schedule)}, summary_table(schedule), json)


def _with_gradients(impact: ImpactName | ForwardImpact) -> ImpactName:
    """`impact`, if the PyTorch path has it."""
    if impact == "cover":
        raise InputError("--impact cover: needs --onnx")
    return impact


def _refuse(source: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')}: does not go with {source}")


def _run(
    request: SlimRequest,
    model_name: str,
    checkpoint: Path | None,
    kwargs: dict[str, int],
    sample: ImageFolder,
    output: Path,
    weights: Path,
) -> KeepSchedule:
    import torch

    from slimdeploy.slim.checkpoint import save_weights
    from slimdeploy.slim.pipeline import slim_model
    from slimdeploy.slim.search import SearchState, settings_of
    from slimdeploy.slim.timm_models import describe, load_model

    model, preprocessing = load_model(model_name, checkpoint, kwargs)
    geometry = describe(model, model_name, kwargs)
    options = request.search_options(geometry)
    arrays = load_arrays(sample, preprocessing)
    data = sample.digest()
    dense = weights_file(checkpoint, output) if checkpoint else None
    identity = {
        "model": geometry.model_dump(mode="json"),
        "data": data,
        "impact": request.impact,
        "search_images": request.search_images,
        "weights": dense.sha256 if dense else None,
        "slimdeploy": __version__,
    }
    saved = SearchState(output.with_name(f".{output.name}.work"), settings_of(options, **identity))
    with progress_bar() as progress:
        bar = progress.add_task("slimming", total=2 * geometry.depth - 1)

        def report(line: str) -> None:
            progress.advance(bar)
            note(line)

        result = slim_model(model, geometry, torch.from_numpy(arrays), request, saved, report)
    slim_file = None
    if result.model is not None:
        save_weights(result.model, weights, name=model_name, preprocessing=preprocessing)
        slim_file = weights_file(weights, output)
    schedule = KeepSchedule(
        model=geometry,
        preprocessing=preprocessing,
        layers=tuple(result.layers),
        checkpoint=dense,
        slim_checkpoint=slim_file,
        provenance=_provenance(request, len(sample), data),
    )
    schedule.write(output)
    saved.clear()
    return schedule


def _provenance(request: SlimRequest, images: int, data: str) -> Provenance:
    return Provenance(
        slimdeploy=__version__,
        command=command_line(),
        seed=request.seed,
        impact=request.impact,
        shape=request.shape if request.mac_reduction is not None else None,
        mac_reduction=request.mac_reduction,
        tolerance=request.tolerance,
        reconstruct=request.reconstruct,
        images=images,
        data=data,
    )
