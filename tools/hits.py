"""Which test images a model gets right, as the tables' records keep it: a bit each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


def packed(right: Bools) -> str:
    """Hits, [n], in hexadecimal."""
    return np.packbits(right).tobytes().hex()


def unpacked(text: str, count: int) -> Bools:
    """The first `count` hits of what `packed` wrote."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)
