"""`slimdeploy quantize`: precision as passes over the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from slimdeploy.cli.numbers import Count, OptionalCount, OptionalSeed
from slimdeploy.cli.preprocessing import Pixels
from slimdeploy.cli.quantize.flags import Drawn, Gates, Taken, refuse_kept
from slimdeploy.precision.options import Part, Precision, Rest
from slimdeploy.precision.thresholds import Method


def quantize(
    model: Path,
    *,
    precision: Precision,
    rest: Rest | None = None,
    calibration: Path | None = None,
    ranges: Path | None = None,
    images: OptionalCount = None,
    seed: OptionalSeed = None,
    split: str | None = None,
    method: Method | None = None,
    percentile: float | None = None,
    smooth: float | None = None,
    also: tuple[Part, ...] = (),
    leave: tuple[str, ...] = (),
    least_rows: Count | None = None,
    keep_float32: tuple[str, ...] = (),
    pixels: Annotated[Pixels, Parameter(name="*", group="What an image goes through")] = Pixels(),  # noqa: B008 (frozen)
    gates: Annotated[Gates, Parameter(name="*", group="Judge the result")] = Gates(),  # noqa: B008 (frozen)
    threads: OptionalCount = None,
    output: Path = Path("quantized.onnx"),
    output_ranges: Path | None = None,
    json: bool = False,
) -> None:
    """Write a float32 ONNX file in fp16, bf16, int8 or fp8: the file itself says what is what.

    LayerNormalization, softmax and residual sums keep float32, and so do inputs and outputs (opset
    23's Attention operator, softmax included, takes the type of its inputs). int8 and fp8 quantise
    the products with weights of the blocks, by explicit and symmetric Q/DQ; attention and the rest
    are fp16. Slim first, then quantise: ranges change with the tokens.

    Args:
        model: the float32 ONNX file: dense or slim.
        precision: fp16, bf16, int8 or fp8 (E4M3).
        rest: of int8 and fp8, the type of what is not quantised (default: fp16); fp32 is for ONNX
            Runtime on the CPU, which has no half-precision kernels, and not for TensorRT.
        calibration: representative images: a folder, or an .npz file of preprocessed ones. For
            int8 and fp8 unless there are ranges; for fp16 they are looked at for overflow (seeded
            noise is, otherwise).
        ranges: a ranges file that was written for this very model.
        images: of a calibration folder, how many to draw (default: 128).
        seed: of their draw, or of the noise (default: 0).
        split: of the calibration folder (train, if there is one).
        method: where to clip: at the largest value seen (minmax, the default), at a percentile, or
            where int8 loses the least information (entropy; not for fp8).
        percentile: for --method percentile (default: 99.999).
        smooth: how far outliers are moved from activations into weights before ranges are taken,
            0 (not at all) to 1 (default: 0.8 for int8, 0 for fp8).
        also: quantise these parts too: attention, embedding, head.
        leave: products that are not quantised, by node or output name.
        least_rows: products of fewer rows an image are not quantised: nothing would be gained
            (default: 16).
        keep_float32: nodes that keep float32, by node or output name; "overflow" keeps those that
            the scan for what float16 cannot hold finds.
        threads: of the runtime (default: its own choice).
        output: the ONNX file to write; its manifest goes beside it.
        output_ranges: where the ranges go (default: beside the output, as .ranges.json).
        json: print the result as JSON.
    """
    from slimdeploy.cli.quantize.run import run_stage
    from slimdeploy.cli.quantize.stage import Stage
    from slimdeploy.precision.options import PrecisionOptions

    of_ranges = Taken(method, percentile, smooth, output_ranges)
    of_ranges.refuse_ignored(precision, ranges, rest=rest, least_rows=least_rows)
    Drawn(images, seed, split).refuse_ignored(calibration, ranges)
    kept = tuple(name for name in keep_float32 if name != "overflow")
    options = PrecisionOptions(precision, rest or "fp16", also, leave, kept, least_rows or 16)
    refuse_kept(keep_float32, options.low)
    stage = Stage(
        model=model,
        options=options,
        keep_overflows="overflow" in keep_float32,
        calibration=calibration,
        ranges_path=ranges,
        request=of_ranges.request(precision),
        images=images or 128,
        seed=seed or 0,
        split=split,
        pixels=pixels,
        gates=gates,
        threads=threads,
        output=output,
        output_ranges=output_ranges or output.with_suffix(".ranges.json"),
    )
    run_stage(stage, json)
