"""Mixed precision: forward passes in a half type, weights in float32."""

from __future__ import annotations

import torch

from slimdeploy.slim.options import AmpDtype


def autocast(device: torch.device, dtype: AmpDtype) -> torch.autocast:
    """Compute in `dtype` where torch holds that safe; float32 changes nothing."""
    wanted = getattr(torch, dtype)
    return torch.autocast(device.type, wanted, enabled=wanted is not torch.float32)
