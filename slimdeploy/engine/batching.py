"""Give any number of images to a model of a fixed batch size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from slimdeploy.engine.protocol import Array, Engine


def infer_batched(engine: Engine, feeds: Mapping[str, Array], size: int) -> dict[str, Array]:
    """Every output for all rows, `size` at a time.

    The last batch is filled with repetitions, which are cut off again.

    Args:
        feeds: inputs by name, each [n, ...].
    """
    count = len(next(iter(feeds.values())))
    if size == count:
        return engine.infer(feeds)
    rows = np.resize(np.arange(count), -(-count // size) * size)
    parts = [
        engine.infer({name: x[rows[i : i + size]] for name, x in feeds.items()})
        for i in range(0, len(rows), size)
    ]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    # A tensor may hold several rows for each image, as attention that merges batch and heads does.
    return {name: y[: len(y) // len(rows) * count] for name, y in whole.items()}
