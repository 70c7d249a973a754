"""A timm model as a dense ONNX graph, by either of torch's exporters."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from slimdeploy.errors import InputError, one_line, requires
from slimdeploy.graph.files.storage import load_model
from slimdeploy.slim.choices import Exporter
from slimdeploy.slim.types import Vit

INPUT, OUTPUT = "images", "logits"


@dataclass(frozen=True)
class OnnxOptions:
    """How the dense graph is written.

    Attributes:
        exporter: torch's graph capture (dynamo) or its tracer (torchscript).
        opset: ONNX operator set; 20 is the first with Gelu as one operator.
        dynamic_batch: leave the batch size open.
        fused_attention: trace scaled_dot_product_attention instead of matmul, softmax, matmul; the
            exporter then decomposes it, or writes one Attention operator from opset 23.
    """

    exporter: Exporter = "dynamo"
    opset: int = 20
    dynamic_batch: bool = True
    fused_attention: bool = False

    def __post_init__(self) -> None:
        low, high = (18, 23) if self.exporter == "dynamo" else (17, 20)
        if not low <= self.opset <= high:
            raise InputError(
                f"--opset {self.opset}: the {self.exporter} exporter writes {low} to {high}"
            )


def export_dense(model: Vit, options: OnnxOptions | None = None) -> onnx.ModelProto:
    """The model as ONNX: input `images` [B, 3, H, W], output `logits` [B, classes], float32.

    Raises:
        MissingError: if onnxscript, which the dynamo exporter needs, is not installed.
        InputError: if torch cannot export the model.
    """
    options = options or OnnxOptions()
    with requires("train"):
        import onnxscript  # noqa: F401
    # Two images, not one: a batch of one is specialised to a constant.
    example = torch.zeros(2 if options.dynamic_batch else 1, *_input_size(model))
    with tempfile.TemporaryDirectory() as folder, _attention(model, options.fused_attention):
        path = Path(folder) / "dense.onnx"
        try:
            with _quiet(), torch.no_grad():
                torch.onnx.export(model, (example,), path, **_arguments(options))
        except Exception as error:  # the exporters raise a dozen kinds of error
            raise InputError(f"torch cannot export this model: {one_line(error)}") from error
        return load_model(path, limit=sys.maxsize)  # the folder goes, so all of it comes along


def _arguments(options: OnnxOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "input_names": [INPUT],
        "output_names": [OUTPUT],
        "opset_version": options.opset,
        "dynamo": options.exporter == "dynamo",
    }
    if options.exporter == "dynamo":
        arguments |= {"verbose": False, "external_data": True}
        if options.dynamic_batch:
            arguments["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    elif options.dynamic_batch:
        arguments["dynamic_axes"] = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    return arguments


def _input_size(model: Vit) -> tuple[int, int, int]:
    embed = model.patch_embed
    return (embed.proj.in_channels, *embed.img_size)


@contextlib.contextmanager
def _attention(model: Vit, fused: bool) -> Iterator[None]:
    """Set every block's attention form for the export, and back."""
    attentions = [m for m in model.modules() if hasattr(m, "fused_attn")]
    before = [attention.fused_attn for attention in attentions]
    try:
        for attention in attentions:
            attention.fused_attn = fused
        yield
    finally:
        for attention, value in zip(attentions, before, strict=True):
            attention.fused_attn = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print progress and warn about themselves; neither concerns the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
