"""From a float32 graph to one in less precision, checked before and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph.files.structure import add_shapes
from slimdeploy.graph.passes import FoldConstants, Pass, Tidy, run
from slimdeploy.graph.work import Work, is_constant, label
from slimdeploy.precision.calibration import Calibration
from slimdeploy.precision.cast_low import CastLow
from slimdeploy.precision.insert_qdq import InsertQdq
from slimdeploy.precision.observe import Progress
from slimdeploy.precision.options import PrecisionOptions
from slimdeploy.precision.products import chosen, observed
from slimdeploy.precision.ranges import Ranges, channel_maxima, histograms, ranges_of
from slimdeploy.precision.roles import defined_for, too_large
from slimdeploy.precision.smooth import SmoothOutliers, smoothable
from slimdeploy.precision.state import PrecisionState, low_tensors, precision_state
from slimdeploy.precision.thresholds import Method
from slimdeploy.precision.unfold_patches import UnfoldPatches


@dataclass(frozen=True)
class RangeRequest:
    """How ranges are found.

    Attributes:
        method: see `slimdeploy.precision.thresholds.threshold`.
        percentile: for the method of that name.
        smooth: exponent of the smoothing before it, 0 for none.
    """

    method: Method = "minmax"
    percentile: float = 99.999
    smooth: float = 0.0


@dataclass(frozen=True)
class QuantizedGraph:
    """A model in less precision, what it is as read back from it, and remarks.

    `quantised` names the products between Q/DQ pairs.
    """

    model: onnx.ModelProto
    state: PrecisionState
    quantised: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


_SATURATION = (
    "on x86 without VNNI ONNX Runtime's sums of 8-bit products saturate unless its session option "
    "session.x64quantprecision is 1, which slimdeploy sets there"
)


def opened(model: onnx.ModelProto, options: PrecisionOptions) -> Work:
    """A working copy of a float32 model that can be written as `options` ask.

    Raises:
        InputError: if it is not float32 any more, its weights are not finite, or its opset is too
            old for the precision.
        GraphError: if the graph is not sound, or writes a normalisation out in single steps.
    """
    opset = next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 0)
    if opset < options.oldest_opset:
        what = f"{options.precision} with a {options.rest} rest" * options.quantised
        remedy = f"export with --opset {max(20, options.oldest_opset)}"
        cpu = ", or take --rest fp32" * (options.precision == "int8" and opset >= 13)
        raise InputError(
            f"opset {opset} is too old for {what or options.precision}, which needs "
            f"{options.oldest_opset}: {remedy}{cpu}"
        )
    work = Work.of(model)
    if sign := next(low_tensors(work), None):
        raise InputError(f"is not float32 any more: {sign}; give the float32 file")
    run([FoldConstants()], work)
    _check_weights(work)
    if options.low != "fp32":
        _check_normalisations(work, opset)
    return work


def quantized_graph(
    model: onnx.ModelProto,
    options: PrecisionOptions,
    ranges: Ranges | None = None,
) -> QuantizedGraph:
    """`model` written as `options` say; it is left as it is.

    Args:
        ranges: for int8 and fp8: where each tensor that is quantised is clipped.

    Raises:
        InputError, GraphError: as `opened`, or if the range of a tensor is missing.
    """
    work = opened(model, options)
    notes = _notes(work, options)
    passes: list[Pass] = []
    insert = InsertQdq(options, ranges.thresholds if ranges else {})
    if options.quantised:
        passes += [SmoothOutliers(options, ranges.channels, ranges.smooth)] if ranges else []
        passes += [UnfoldPatches()] if options.on_cpu and "embedding" in options.also else []
        passes.append(insert)
    if options.low != "fp32":
        passes.append(CastLow(options.low, options.keep_float32))
    run([*passes, Tidy()], work)
    exported = work.export()
    add_shapes(exported)
    return QuantizedGraph(exported, precision_state(work), tuple(insert.done), notes)


def collect_ranges(
    source: Path,
    model: onnx.ModelProto,
    options: PrecisionOptions,
    images: Calibration,
    request: RangeRequest,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Ranges:
    """Run the float32 `model` of the file `source` on images and find where to clip.

    Raises:
        InputError, GraphError: as `opened`.
        GateError: if a tensor holds NaN or infinity on an image.
    """
    work = opened(model, options)
    channels: dict[str, list[float]] = {}
    if request.smooth:
        names = list(smoothable(work, options))
        channels = channel_maxima(work, names, images, progress, threads)
        run([SmoothOutliers(options, channels, request.smooth)], work)
    names = observed(chosen(work, options))
    found = histograms(work, names, images, progress, threads)
    return ranges_of(
        found, source, images, request.method, request.percentile, request.smooth, channels
    )


def _check_weights(work: Work) -> None:
    """Refuse NaN and infinity; -inf is let pass, for a mask hides with it."""
    for tensor in work.graph.tensors().values():
        if not is_constant(tensor) or not np.issubdtype(tensor.dtype, np.floating):
            continue
        values = tensor.values
        if np.isnan(values).any() or np.isposinf(values).any():
            raise InputError(
                f"tensor '{tensor.name}' holds NaN or infinity: export the model again from "
                "sound weights"
            )


def _check_normalisations(work: Work, opset: int) -> None:
    """Refuse a LayerNormalization written out in steps, which half precision would spoil."""
    for node in work.graph.nodes:
        if node.op != "ReduceMean":
            continue
        read = node.inputs[0]
        centred = [other for other in read.outputs if other.op == "Sub"]
        if any(other.inputs[1] is node.outputs[0] for other in centred):
            raise GraphError(
                f"{label(node)}: begins a normalisation written out in single steps, as opset "
                f"{opset} has it; export with opset 17 or later, where it is one LayerNormalization"
            )


def _notes(work: Work, options: PrecisionOptions) -> list[str]:
    """What stays in float32 beside what always does, and what whoever runs the file must know."""
    if options.low == "fp32":
        return [_SATURATION] * options.on_cpu
    notes = []
    for node in work.graph.nodes:
        if constant := too_large(node, options.low):
            notes.append(f"{label(node)} keeps float32: '{constant}' is beyond {options.low}")
        elif node.op in ("MatMul", "Gemm", "Conv") and not defined_for(work, node, options.low):
            notes.append(f"{label(node)} keeps float32: its opset has no {options.low} for it")
    return notes
