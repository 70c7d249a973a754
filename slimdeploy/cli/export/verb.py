"""`slimdeploy export`: the graph stage."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.cli.common import check_suffix, check_weights_safe, separated, show
from slimdeploy.cli.export.stage import Stage
from slimdeploy.cli.numbers import OptionalCount
from slimdeploy.errors import InputError
from slimdeploy.files import check_writable
from slimdeploy.graph.options import GraphOptions, InputLayout, Select
from slimdeploy.manifest import manifest_path
from slimdeploy.slim.choices import Exporter


def export(
    *,
    keep_schedule: Path | None = None,
    onnx: Path | None = None,
    model: str | None = None,
    checkpoint: Path | None = None,
    lossless: bool = False,
    select: Select = "gather",
    optimize: bool = False,
    forbid_op: tuple[str, ...] = (),
    fixed_batch: int | None = None,
    input_layout: InputLayout = "nchw",
    prefix_blocks: int | None = None,
    outputs: tuple[str, ...] = (),
    pool_kept: bool = False,
    check: bool = True,
    exporter: Exporter | None = None,
    opset: int | None = None,
    static_batch: bool = False,
    fused_attention: bool = False,
    data_dir: Path | None = None,
    split: str | None = None,
    tolerance: float | None = None,
    img_size: OptionalCount = None,
    output: Path = Path("slim.onnx"),
    json: bool = False,
) -> None:
    """Write the slim model as ONNX, after checking it; without a schedule, the dense one.

    From --onnx, any dense vision transformer's file: torch is not needed, and the result is checked
    against the dense graph with the dropped tokens masked or the merged ones averaged. Else from
    the timm model and weights that the schedule names: torch exports it, and the result is checked
    against torch. What fails its check is not written.

    Args:
        keep_schedule: which tokens live in which layer.
        onnx: the dense ONNX file (default: the one the schedule names, if it names one).
        model: timm model name, to export the dense model when there is no schedule.
        checkpoint: weights (default: the schedule's refitted ones, else the dense model's).
        lossless: no schedule: the last block computes only what the head reads, nothing is lost.
        select: how a selection of tokens is written: gather (constant indices), slice (one
            permutation at the input, then prefixes), slice-concat (runs of neighbours), one-hot
            (a product with a constant matrix).
        optimize: rewrite the graph to compute the same with less work; do so to the dense one too
            when you compare.
        forbid_op: fail if one of these operators remains, as Gather,GatherND.
        fixed_batch: write this batch size into the graph.
        input_layout: nhwc takes images as [B, H, W, C].
        prefix_blocks: end the graph after so many blocks: a probe for a compiler.
        outputs: outputs of --onnx to keep, where it has more than the one that is wanted.
        pool_kept: let the head of --onnx pool over the kept tokens (default: as the schedule says).
        check: run dense and slim with ONNX Runtime and compare; --no-check goes with --onnx only.
        exporter: torch's graph capture (dynamo, the default) or its tracer (torchscript). This and
            the next three are for a timm model: an ONNX file is taken as it is.
        opset: ONNX operator set (default: 20, where GELU is one operator and runs faster); 17 and
            18 for older TensorRT, 23 for one Attention operator (with --fused-attention).
        static_batch: fix the batch size at 1.
        fused_attention: export scaled_dot_product_attention instead of its three steps.
        data_dir: images for the check (default: seeded noise).
        split: split of those images (val if there is one).
        tolerance: largest difference allowed, as a share of the logits' scale (default: 1e-4;
            1e-2 for float16 weights, 5e-2 for bfloat16).
        img_size: the model's input size in pixels, if not its own.
        output: the ONNX file to write; its manifest goes beside it.
        json: print the result as JSON.
    """
    options = GraphOptions(
        select, optimize, separated(forbid_op), fixed_batch, input_layout, prefix_blocks, pool_kept
    )
    if lossless and keep_schedule is not None:
        raise InputError("--lossless takes no --keep-schedule: it drops nothing that is read")
    stage = Stage(keep_schedule, lossless, options, data_dir, split, tolerance, check)
    path = stage.dense_file(onnx)
    _check_output(output, path, keep_schedule, checkpoint)
    if path is not None:
        from slimdeploy.cli.export.from_onnx import export_file

        _refuse(
            "--onnx", model=model, checkpoint=checkpoint, img_size=img_size, exporter=exporter,
            opset=opset, static_batch=static_batch, fused_attention=fused_attention,
        )  # fmt: skip
        result = export_file(stage, path, separated(outputs), output)
    else:
        from slimdeploy.cli.export.from_timm import TorchExport, export_timm

        _refuse("a timm model", outputs=outputs or None, pool_kept=pool_kept, no_check=not check)
        exporter, opset = exporter or "dynamo", 20 if opset is None else opset
        how = exporter, opset, static_batch, fused_attention, img_size
        result = export_timm(stage, TorchExport(model, checkpoint, *how), output)
    show(result, stage.sentence(result), json)


def _check_output(
    output: Path, dense: Path | None, schedule: Path | None, checkpoint: Path | None
) -> None:
    """Neither the file nor its manifest may replace what is read."""
    check_writable(output, dense, schedule, checkpoint)
    check_suffix("--output", output, ".onnx")
    check_writable(manifest_path(output), schedule)
    check_weights_safe(output, dense)


def _refuse(source: str, **given: object) -> None:
    """Refuse each flag that was given: that is neither None nor False."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise InputError(f"--{name.replace('_', '-')}: does not go with {source}")
