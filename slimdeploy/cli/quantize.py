"""`slimdeploy quantize`: precision as passes over the graph."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.cli.preprocessing import Triple
from slimdeploy.errors import InputError
from slimdeploy.precision.options import Part, Precision, Rest
from slimdeploy.precision.thresholds import Method
from slimdeploy.preprocessing import Interpolation


def quantize(
    model: Path,
    *,
    precision: Precision,
    rest: Rest = "fp16",
    calibration: Path | None = None,
    ranges: Path | None = None,
    images: int = 128,
    seed: int = 0,
    split: str | None = None,
    method: Method = "minmax",
    percentile: float = 99.999,
    smooth: float | None = None,
    also: tuple[Part, ...] = (),
    leave: tuple[str, ...] = (),
    least_rows: int = 16,
    keep_float32: tuple[str, ...] = (),
    mean: Triple | None = None,
    std: Triple | None = None,
    interpolation: Interpolation = "bicubic",
    crop_pct: float = 1.0,
    data_dir: Path | None = None,
    data_split: str | None = None,
    max_top1_drop: float | None = None,
    max_logit_error: float | None = None,
    threads: int | None = None,
    output: Path = Path("quantized.onnx"),
    output_ranges: Path | None = None,
    json: bool = False,
) -> None:
    """Write a float32 ONNX file in fp16, bf16, int8 or fp8: the file itself says what is what.

    LayerNormalization, softmax and residual sums keep float32, and so do inputs and outputs. int8
    and fp8 quantise the products with weights of the blocks, by explicit and symmetric Q/DQ;
    attention and the rest are fp16. Slim first, then quantise: ranges change with the tokens.

    Args:
        model: the float32 ONNX file: dense or slim.
        precision: fp16, bf16, int8 or fp8 (E4M3).
        rest: of int8 and fp8, the type of what is not quantised; fp32 is for ONNX Runtime on the
            CPU, which has no half-precision kernels, and not for TensorRT.
        calibration: representative images: a folder, or an .npz file of preprocessed ones. For
            int8 and fp8 unless there are ranges; for fp16 they are looked at for overflow (seeded
            noise is, otherwise).
        ranges: a ranges file that was written for this very model.
        images: of a calibration folder, how many to draw.
        seed: of their draw.
        split: of the calibration folder (train, if there is one).
        method: where to clip: at the largest value seen (minmax), at a percentile, or where the
            least information is lost (entropy).
        percentile: for --method percentile.
        smooth: how far outliers are moved from activations into weights before ranges are taken,
            0 (not at all) to 1 (default: 0.8 for int8, 0 for fp8).
        also: quantise these parts too: attention, embedding, head.
        leave: products that are not quantised, by node or output name.
        least_rows: products of fewer rows an image are not quantised: nothing would be gained.
        keep_float32: nodes that keep float32, by node or output name; "overflow" keeps those that
            the scan finds.
        mean: of the preprocessing, for a file whose manifest records none; with --std.
        std: see --mean.
        interpolation: see --mean.
        crop_pct: see --mean.
        data_dir: labelled images for --max-top1-drop.
        data_split: of these (test if there is one).
        max_top1_drop: fail (exit 1) if top-1 is more points below the float32 file's, as 0.5.
        max_logit_error: fail (exit 1) if an output differs by more of the outputs' scale, as 0.05,
            on the calibration images.
        threads: of the runtime (default: its own choice).
        output: the ONNX file to write; its manifest goes beside it.
        output_ranges: where the ranges go (default: beside the output, as .ranges.json).
        json: print the result as JSON.
    """
    from slimdeploy.cli.quantize_stage import Stage, run_stage
    from slimdeploy.precision.options import PrecisionOptions
    from slimdeploy.precision.quantize import RangeRequest

    automatic = "overflow" in keep_float32
    kept = tuple(name for name in keep_float32 if name != "overflow")
    options = PrecisionOptions(precision, rest, also, leave, kept, least_rows)
    if smooth is None:
        smooth = 0.8 if precision == "int8" else 0.0
    if not 0 <= smooth <= 1:
        raise InputError(f"--smooth {smooth}: must be between 0 and 1")
    stage = Stage(
        model=model,
        options=options,
        keep_overflows=automatic,
        calibration=calibration,
        ranges_path=ranges,
        request=RangeRequest(method, percentile, smooth),
        images=images,
        seed=seed,
        split=split,
        pixels=(mean, std, interpolation, crop_pct),
        data_dir=data_dir,
        data_split=data_split,
        max_top1_drop=max_top1_drop,
        max_logit_error=max_logit_error,
        threads=threads,
        output=output,
        output_ranges=output_ranges or output.with_suffix(".ranges.json"),
    )
    run_stage(stage, json)
