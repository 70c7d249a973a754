"""`slimdeploy export`: the graph stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from slimdeploy.cli.common import command_line, load_arrays, open_images, show, slim_weights
from slimdeploy.errors import InputError, requires
from slimdeploy.files import atomic_path, check_writable
from slimdeploy.manifest import write_manifest
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule
from slimdeploy.slim.choices import Exporter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slimdeploy.graph import SlimGraph
    from slimdeploy.slim.dense_onnx import OnnxOptions

PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnx-graphsurgeon", "onnxruntime", "numpy")


@dataclass(frozen=True)
class _Source:
    """What is exported: the torch model, what it keeps (None: all), and where it came from."""

    model: Any
    preprocessing: Preprocessing
    keep: list[list[int]] | None
    made_from: dict[str, Path]
    name: str


def export(
    *,
    keep_schedule: Path | None = None,
    model: str | None = None,
    checkpoint: Path | None = None,
    lossless: bool = False,
    exporter: Exporter = "dynamo",
    opset: int = 20,
    static_batch: bool = False,
    fused_attention: bool = False,
    data_dir: Path | None = None,
    split: str | None = None,
    tolerance: float = 2e-5,
    img_size: int | None = None,
    output: Path = Path("slim.onnx"),
    json: bool = False,
) -> None:
    """Write the slim model as ONNX, after checking it against torch; without a schedule, the dense.

    The dense model is exported by torch; a pass over the token axis then drops the tokens. What
    does not compute the torch model's logits is not written.

    Args:
        keep_schedule: the schedule; the model and weights it names are the default.
        model: timm model name, to export the dense model when there is no schedule.
        checkpoint: weights (default: the schedule's refitted ones, else the dense model's).
        lossless: no schedule: the last block computes only what the head reads, nothing is lost.
        exporter: torch's graph capture (dynamo) or its tracer (torchscript).
        opset: ONNX operator set; from 20 GELU is one operator, which ONNX Runtime runs faster; 17
            and 18 for older TensorRT, 23 for one Attention operator (with --fused-attention).
        static_batch: fix the batch size at 1.
        fused_attention: export scaled_dot_product_attention instead of its three steps.
        data_dir: images for the check against torch (default: seeded noise).
        split: split of those images (val if there is one).
        tolerance: largest difference allowed, as a share of the logits' scale.
        img_size: the model's input size in pixels, if not its own.
        output: the ONNX file to write; its manifest goes beside it.
        json: print the result as JSON.
    """
    with requires("train"):
        from slimdeploy.slim import timm_models  # noqa: F401
        from slimdeploy.slim.dense_onnx import OnnxOptions
    options = OnnxOptions(exporter, opset, not static_batch, fused_attention)
    source = _source(keep_schedule, model, checkpoint, lossless, img_size)
    check_writable(output, *source.made_from.values())
    images = _check_images(source.preprocessing, data_dir, split)
    result = _export(source, options, lossless, images, tolerance, output)
    show(result, _sentence(result, output), json)


def _source(
    schedule_path: Path | None,
    model: str | None,
    checkpoint: Path | None,
    lossless: bool,
    img_size: int | None,
) -> _Source:
    from slimdeploy.slim.timm_models import load_model, load_scheduled

    if schedule_path is None:
        if model is None:
            raise InputError("give --keep-schedule for the slim model, or --model for the dense")
        kwargs = {} if img_size is None else {"img_size": img_size}
        loaded, preprocessing = load_model(model, checkpoint, kwargs)
        made_from = {"checkpoint": checkpoint} if checkpoint else {}
        return _Source(loaded, preprocessing, None, made_from, model)
    if lossless:
        raise InputError("--lossless takes no --keep-schedule: it drops nothing that is read")
    schedule = KeepSchedule.read(schedule_path)
    if img_size is not None:
        raise InputError("--img-size: the keep schedule fixes the image size")
    if model is not None and model != schedule.model.name:
        raise InputError(f"{schedule_path}: is for {schedule.model.name}, not for --model {model}")
    weights = slim_weights(schedule, schedule_path, checkpoint)
    check_made_for(weights, schedule)
    loaded, preprocessing = load_scheduled(schedule, weights)
    made_from = {"schedule": schedule_path, **({"checkpoint": weights} if weights else {})}
    return _Source(loaded, preprocessing, schedule.keep, made_from, schedule.model.name)


def check_made_for(weights: Path | None, schedule: KeepSchedule) -> None:
    """Refuse weights that were fine-tuned for another schedule."""
    from slimdeploy.slim.checkpoint import Checkpoint

    if weights is None:
        return
    digest = Checkpoint.read(weights).metadata.get("keep_schedule", schedule.digest)
    if digest != schedule.digest:
        raise InputError(
            f"{weights}: was fine-tuned for another keep schedule; give the one it was made with"
        )


def _check_images(
    preprocessing: Preprocessing, data_dir: Path | None, split: str | None
) -> NDArray[np.float32]:
    if data_dir is not None:
        folder = open_images(data_dir, split, "val", labelled=False)
        return load_arrays(folder.sample(16, seed=0), preprocessing)
    import numpy as np

    noise = np.random.default_rng(0).standard_normal((4, *preprocessing.input_size))
    return noise.astype(np.float32)


def _export(
    source: _Source,
    options: OnnxOptions,
    lossless: bool,
    images: NDArray[np.float32],
    tolerance: float,
    output: Path,
) -> dict[str, Any]:
    from slimdeploy.graph import lossless_graph, slim_graph
    from slimdeploy.measure.parity import compare_outputs
    from slimdeploy.slim.accuracy import torch_logits
    from slimdeploy.slim.dense_onnx import export_dense
    from slimdeploy.slim.model import SlimVit

    graph = export_dense(source.model, options)
    slim: SlimGraph | None = None
    if source.keep is not None:
        slim = slim_graph(graph, source.keep, source=source.name)
    elif lossless:
        slim = lossless_graph(graph, source=source.name)
    reference = source.model if source.keep is None else SlimVit(source.model, source.keep)
    kind = "dense" if slim is None else "lossless" if source.keep is None else "slim"
    with atomic_path(output) as path:
        onnx.save(graph if slim is None else slim.model, path)
        logits = onnx_logits(path, images)
        parity = compare_outputs(torch_logits(reference, images), logits, tolerance)
        parity.require(f"{output}: against the {kind} torch model; nothing was written")
    counts = [] if slim is None else [block.queries for block in slim.blocks]
    write_manifest(
        output,
        kind=f"{kind}-onnx",
        made_from=source.made_from,
        command=command_line(),
        packages=PACKAGES,
        preprocessing=source.preprocessing,
        tokens_per_block=counts,
        results={"parity": parity.to_json()},
    )
    notes = [] if slim is None else slim.notes
    return {
        "output": str(output),
        "kind": kind,
        "tokens_per_block": counts,
        "parity": parity.to_json(),
        "notes": notes,
    }


def onnx_logits(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [n, classes] of an ONNX file on the CPU, in small batches or the file's own."""
    import numpy as np

    from slimdeploy.engine import open_engine

    with open_engine(path) as engine:
        size = engine.inputs[0].shape[0] or 16
        output = engine.outputs[0].name
        parts = [
            engine.infer(images[start : start + size])[output]
            for start in range(0, len(images), size)
        ]
    return np.concatenate(parts)


def _sentence(result: dict[str, Any], output: Path) -> str:
    parity = result["parity"]
    lines = [
        f"wrote {output} ({result['kind']}): differs from torch by {parity['relative']:.1e} of the "
        f"logits' scale on {parity['rows']} images",
        *result["notes"],
    ]
    return "\n".join(lines)
