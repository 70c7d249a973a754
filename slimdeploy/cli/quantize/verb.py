"""`slimdeploy quantize`: precision as passes over the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from slimdeploy.cli.numbers import Count, OptionalCount, Seed
from slimdeploy.cli.preprocessing import Pixels
from slimdeploy.cli.quantize.flags import Gates
from slimdeploy.errors import InputError
from slimdeploy.precision.options import Part, Precision, Rest
from slimdeploy.precision.thresholds import Method


def quantize(
    model: Path,
    *,
    precision: Precision,
    rest: Rest | None = None,
    calibration: Path | None = None,
    ranges: Path | None = None,
    images: Count = 128,
    seed: Seed = 0,
    split: str | None = None,
    method: Method = "minmax",
    percentile: float | None = None,
    smooth: float | None = None,
    also: tuple[Part, ...] = (),
    leave: tuple[str, ...] = (),
    least_rows: int = 16,
    keep_float32: tuple[str, ...] = (),
    pixels: Annotated[Pixels, Parameter(name="*")] = Pixels(),  # noqa: B008 (frozen)
    gates: Annotated[Gates, Parameter(name="*")] = Gates(),  # noqa: B008 (frozen)
    threads: OptionalCount = None,
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
        rest: of int8 and fp8, the type of what is not quantised (default: fp16); fp32 is for ONNX
            Runtime on the CPU, which has no half-precision kernels, and not for TensorRT.
        calibration: representative images: a folder, or an .npz file of preprocessed ones. For
            int8 and fp8 unless there are ranges; for fp16 they are looked at for overflow (seeded
            noise is, otherwise).
        ranges: a ranges file that was written for this very model.
        images: of a calibration folder, how many to draw.
        seed: of their draw.
        split: of the calibration folder (train, if there is one).
        method: where to clip: at the largest value seen (minmax), at a percentile, or where the
            least information is lost (entropy).
        percentile: for --method percentile (default: 99.999).
        smooth: how far outliers are moved from activations into weights before ranges are taken,
            0 (not at all) to 1 (default: 0.8 for int8, 0 for fp8).
        also: quantise these parts too: attention, embedding, head.
        leave: products that are not quantised, by node or output name.
        least_rows: products of fewer rows an image are not quantised: nothing would be gained.
        keep_float32: nodes that keep float32, by node or output name; "overflow" keeps those that
            the scan finds.
        threads: of the runtime (default: its own choice).
        output: the ONNX file to write; its manifest goes beside it.
        output_ranges: where the ranges go (default: beside the output, as .ranges.json).
        json: print the result as JSON.
    """
    from slimdeploy.cli.quantize.run import run_stage
    from slimdeploy.cli.quantize.stage import Stage
    from slimdeploy.precision.options import PrecisionOptions
    from slimdeploy.precision.quantize import RangeRequest

    _refuse_without_effect(precision, method, percentile, rest=rest, output_ranges=output_ranges)
    automatic = "overflow" in keep_float32
    kept = tuple(name for name in keep_float32 if name != "overflow")
    options = PrecisionOptions(precision, rest or "fp16", also, leave, kept, least_rows)
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
        request=RangeRequest(method, percentile or 99.999, smooth),
        images=images,
        seed=seed,
        split=split,
        pixels=pixels,
        gates=gates,
        threads=threads,
        output=output,
        output_ranges=output_ranges or output.with_suffix(".ranges.json"),
    )
    run_stage(stage, json)


def _refuse_without_effect(
    precision: Precision, method: Method, percentile: float | None, **of_ranges: object
) -> None:
    """Stop at flags that would be read by nobody.

    Raises:
        InputError: naming the first.
    """
    if percentile is not None and method != "percentile":
        raise InputError("--percentile: goes with --method percentile")
    for name, value in of_ranges.items():
        if value is not None and precision in ("fp16", "bf16"):
            raise InputError(f"--{name.replace('_', '-')}: goes with int8 and fp8, not {precision}")
