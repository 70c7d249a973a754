"""Small vision transformers with random parameters, exported once per session."""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import timm.layers
import torch
from numpy.typing import NDArray
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention, VisionTransformer

IMAGE = 64
DEPTH = 3


class MergedHeads(Attention):  # type: ignore[misc]
    """Heads as rows of the batch, as models written with torch.bmm have them."""

    def forward(self, x: torch.Tensor, attn_mask: Any = None, **_: Any) -> torch.Tensor:
        batch, tokens, dim = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = parts.permute(2, 0, 3, 1, 4).reshape(3, -1, tokens, self.head_dim)
        maps = torch.bmm(q * self.scale, k.transpose(1, 2)).softmax(-1)
        heads = torch.bmm(maps, v).reshape(batch, self.num_heads, tokens, self.head_dim)
        return self.proj(heads.transpose(1, 2).reshape(batch, tokens, dim))


class MergedTransformer(VisionTransformer):  # type: ignore[misc]
    """A plain one with such attention."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for block in self.blocks:
            block.attn.__class__ = MergedHeads


MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "plain": (VisionTransformer, {}),
    "distilled": (VisionTransformerDistilled, {}),
    "registers": (VisionTransformer, {"reg_tokens": 4}),
    "layerscale": (VisionTransformer, {"init_values": 0.5}),
    "no_embed_class": (VisionTransformer, {"no_embed_class": True, "reg_tokens": 4}),
    "pre_norm": (VisionTransformer, {"pre_norm": True}),
    "average": (VisionTransformer, {"global_pool": "avg", "class_token": False}),
    "merged_heads": (MergedTransformer, {}),
    "map": (VisionTransformer, {"global_pool": "map", "class_token": False}),
}

EXPORTERS: dict[str, tuple[int, bool, bool]] = {  # opset, dynamo, fused attention
    "dynamo18-fused": (18, True, True),
    "dynamo18": (18, True, False),
    "dynamo20": (20, True, False),
    "dynamo23": (23, True, True),
    "script17-fused": (17, False, True),
    "script17": (17, False, False),
}


@cache
def build(kind: str, fused: bool) -> torch.nn.Module:
    """A small model of this kind; every parameter is random, so no two tensors are merged."""
    base, extra = MODELS[kind]
    size = {"img_size": IMAGE, "patch_size": 16, "embed_dim": 48, "num_heads": 3, "depth": DEPTH}
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(fused)  # of the whole process, and read when a module is made
    torch.manual_seed(0)
    model = base(num_classes=7, **size, **extra).eval()
    timm.layers.set_fused_attn(before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
    return model


@cache
def export(kind: str, exporter: str, dynamic: bool) -> onnx.ModelProto:
    """The model as this exporter writes it. Never edit the result: it is shared."""
    opset, dynamo, fused = EXPORTERS[exporter]
    model = build(kind, fused)
    example = torch.randn(2 if dynamic else 1, 3, IMAGE, IMAGE)
    options: dict[str, Any] = {"opset_version": opset, "input_names": ["image"]}
    options["output_names"] = ["logits"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None
            program = torch.onnx.export(
                model, (example,), dynamo=True, verbose=False, dynamic_shapes=shapes, **options
            )
            return program.model_proto
        axes = {"image": {0: "batch"}, "logits": {0: "batch"}} if dynamic else None
        buffer = io.BytesIO()
        torch.onnx.export(model, (example,), buffer, dynamo=False, dynamic_axes=axes, **options)
        return onnx.load_from_string(buffer.getvalue())


def run(model: onnx.ModelProto, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The model's logits, by ONNX Runtime."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(None, {"image": image})[0]
    return logits
