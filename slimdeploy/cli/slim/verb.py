"""`slimdeploy slim`: which patches each layer needs; from a timm model, or from an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from slimdeploy.cli.common import check_suffix, show, summary, summary_table
from slimdeploy.cli.numbers import Count, OptionalCount, Ridge, Seed
from slimdeploy.cli.slim.flags import SlimFlags, refuse, refuse_ridge
from slimdeploy.cli.slim.from_timm import TimmModel, draw_images, slimmed_schedule, static
from slimdeploy.counts import ShapeChoice
from slimdeploy.dynamic import PerImage
from slimdeploy.errors import InputError, requires
from slimdeploy.files import check_writable
from slimdeploy.slim.choices import DEFAULT_IMPACT, SEARCH_IMAGES, ImpactName, Reconstruct

if TYPE_CHECKING:
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
    shape: ShapeChoice = "geometric",
    multiple_of: Count = 1,
    impact: ImpactName | None = None,
    reconstruct: Reconstruct = "refit",
    dynamic: PerImage | None = None,
    images: Count = 192,
    search_images: Count = SEARCH_IMAGES,
    step: OptionalCount = None,
    ridge: Ridge = None,
    seed: Seed = 0,
    img_size: OptionalCount = None,
    output: Path | None = None,
    output_checkpoint: Path | None = None,
    file: Annotated[SlimFlags, Parameter(name="*", group="With --onnx")] = SlimFlags(),  # noqa: B008 (frozen)
    json: bool = False,
) -> None:
    """Search which patches each layer needs, last layer first, on unlabelled images.

    From --model, a timm model: the result is a keep schedule and refitted weights, for `export`.

    From --onnx, any dense vision transformer's file: torch is not needed, forward passes choose
    the patches and refit the weights, and the result is the slim file itself, beside its schedule.

    A search that was killed goes on where it stopped when the same command is given again.

    Args:
        model: timm model name, as deit_tiny_patch16_224.
        onnx: a dense ONNX file, instead of --model.
        data_dir: calibration images: an image folder, or one with train/val/test inside.
        checkpoint: the dense model's weights; without them, timm's pretrained ones.
        split: split of the data to calibrate on (train if there is one).
        mac_reduction: budget: the share of MACs to save, as 0.46.
        tolerance: in place of a budget, the paper's epsilon: relative error allowed per layer.
        shape: how a budget's token counts fall over the layers; auto tries three and takes the one
            that stays closest to the dense model on images held out.
        multiple_of: round token counts to a multiple, as 8 or 16.
        impact: what ranks the tokens (default: cover, keep what the others are predicted from);
            path is the paper's score; joint needs gradients, so --model; grid, centre and random
            look at no image.
        reconstruct: how the rest recovers: refit (closed form), gradient (as in the paper), none.
        dynamic: no positions, each image decides for itself, in fixed numbers: merge (average the
            patches that are most alike), or choose patches by a score: predictor (a linear map of
            the token, fitted to the attention that the head's tokens pay it later), key-norm,
            token-norm. For images whose subject moves about.
        images: calibration images to draw, all of which the refit uses (with --onnx one more is
            drawn for eight of them, which measures the result).
        search_images: how many of them the search looks at.
        step: with a tolerance, tokens added per candidate (the paper's r'; default 10).
        ridge: strength of the refit's ridge, in mean diagonals of its normal matrix, or `auto`:
            chosen for each layer, on every fourth image (default: 1; with --dynamic, auto).
        seed: of every random choice.
        img_size: the model's input size in pixels, if not its own.
        output: the keep schedule to write (sched.json); with --onnx, the slim file (slim.onnx).
        output_checkpoint: the recovered weights to write (default: beside the schedule); with
            --onnx, a dense file with these weights, from which `export` makes other forms and
            against which `verify` proves the slim one (default: none).
        json: print the result as JSON.
    """
    refuse_ridge(ridge, reconstruct)
    _refuse_of_other(model, onnx, checkpoint, tolerance, step, img_size, file)
    if onnx is not None:
        from slimdeploy.cli.slim.from_onnx import OnnxSlim, slim_file

        wanted = OnnxSlim(
            data_dir, split, mac_reduction, shape, multiple_of, impact, reconstruct, images,
            search_images, ridge, seed, file, dynamic, file.output_schedule,
        )  # fmt: skip
        slim_file(onnx, wanted, output or Path("slim.onnx"), output_checkpoint, json)
        return
    with requires("train"):
        from slimdeploy.forward.ridge import ridge_options
        from slimdeploy.slim import timm_models  # noqa: F401
        from slimdeploy.slim.pipeline import SlimRequest

    request = SlimRequest(
        mac_reduction=mac_reduction, tolerance=tolerance, shape=shape, multiple_of=multiple_of,
        impact=impact or DEFAULT_IMPACT, reconstruct=reconstruct, step=10 if step is None else step,
        seed=seed, search_images=search_images, refit=ridge_options(ridge, dynamic is not None),
    )  # fmt: skip
    flags = _TimmFlags(str(model), checkpoint, data_dir, split, images, img_size)
    dynamic_flags = (dynamic, impact, step)
    _slim_timm(flags, request, dynamic_flags, output or Path("sched.json"), output_checkpoint, json)


@dataclass(frozen=True)
class _TimmFlags:
    """Which model, and on which images; the flags of `slim --model`."""

    model: str
    checkpoint: Path | None
    data_dir: Path
    split: str | None
    images: int
    img_size: int | None


def _slim_timm(
    flags: _TimmFlags,
    request: SlimRequest,
    dynamic_flags: tuple[PerImage | None, ImpactName | None, int | None],
    schedule_path: Path,
    weights: Path | None,
    json: bool,
) -> None:
    """Search static positions, or scorers where each image chooses; write, and say what came."""
    checkpoint, seed = flags.checkpoint, request.seed
    if weights is not None and request.reconstruct == "none":
        raise InputError("--output-checkpoint: --reconstruct none leaves the weights as they are")
    weights = weights or schedule_path.with_suffix(".safetensors")
    check_writable(schedule_path, checkpoint)
    if request.reconstruct != "none":
        check_writable(weights, checkpoint, schedule_path)
        check_suffix("--output-checkpoint", weights, ".safetensors")
    check_suffix("--output", schedule_path, ".json")
    scorer, impact, step = dynamic_flags
    if scorer is None:
        way = static(request)
        if step is not None and request.tolerance is None:
            raise InputError("--step: goes with --tolerance, not with --mac-reduction")
    else:
        from slimdeploy.cli.slim.dynamic import dynamic, dynamic_request

        way = dynamic(dynamic_request(scorer, request, impact, step), seed)
    sample = draw_images(flags.data_dir, flags.split, flags.images, seed)
    kwargs = {} if flags.img_size is None else {"img_size": flags.img_size}
    source = TimmModel(flags.model, checkpoint, kwargs, sample, schedule_path, weights)
    schedule = slimmed_schedule(source, way)
    result = {"schedule": str(schedule_path), **summary(schedule)}
    show(result, summary_table(schedule), json)


def _refuse_of_other(
    model: str | None,
    onnx: Path | None,
    checkpoint: Path | None,
    tolerance: float | None,
    step: int | None,
    img_size: int | None,
    file: SlimFlags,
) -> None:
    """Stop at flags that belong to the other source, or where there is none."""
    if onnx is not None:
        given = {"model": model, "checkpoint": checkpoint, "tolerance": tolerance, "step": step}
        refuse("--onnx", **given, img_size=img_size)
    elif model is None:
        raise InputError("give --model NAME for a timm model, or --onnx FILE for a dense ONNX file")
    else:
        file.refuse()
