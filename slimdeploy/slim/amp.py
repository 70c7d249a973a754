"""Mixed precision, and the attention kernel that training on a CPU is quicker with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from slimdeploy.slim.options import AmpDtype


def autocast(device: torch.device, dtype: AmpDtype) -> torch.autocast:
    """Compute in `dtype` where torch holds that safe; float32 changes nothing."""
    wanted = getattr(torch, dtype)
    return torch.autocast(device.type, wanted, enabled=wanted is not torch.float32)


def slower_than_float32(device: torch.device, dtype: AmpDtype) -> bool:
    """Whether `dtype` is only emulated: 60 times slower than float32 on one CPU with AVX2 alone."""
    if device.type != "cpu" or dtype == "float32":
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


@contextmanager
def attention_for_gradients(device: torch.device) -> Iterator[None]:
    """On a CPU attend in separate products, whose gradients cost a fifth less of a training step.

    The fused kernel is the quicker one forward, but its backward pass computes the map anew. The
    price is memory, a map per layer and image: for training on batches, not for a search that
    holds a thousand tokens.
    """
    if device.type != "cpu":
        yield
        return
    cuda = torch.backends.cuda  # the switch's place and name, but a CPU obeys it too
    before = cuda.fp16_bf16_reduction_math_sdp_allowed()
    cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        cuda.allow_fp16_bf16_reduction_math_sdp(before)
