"""How far two classifiers' outputs are apart, image by image, in double precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Values = NDArray[np.float64]

_ROWS = 4096  # at a time: a thousand classes in float64 are 8 kB an image


def confidences(logits: Logits) -> Values:
    """The largest softmax probability of each row of [n, classes], [n]."""
    return _by_rows(lambda x: np.exp(log_softmax(x).max(axis=1)), logits)


def cross_entropies(logits: Logits, labels: NDArray[np.int64]) -> Values:
    """-log of the probability given to each row's label, in nats, [n]."""

    def chosen(x: Logits, label: NDArray[np.int64]) -> Values:
        picked: Values = -log_softmax(x)[np.arange(len(x)), label]
        return picked

    return _by_rows(chosen, logits, labels)


def kl_divergences(reference: Logits, other: Logits) -> Values:
    """KL(reference || other) of each row's softmax, in nats, at least 0, [n]."""

    def divergence(p: Logits, q: Logits) -> Values:
        log_p, log_q = log_softmax(p), log_softmax(q)
        found: Values = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
        return np.maximum(found, 0.0)  # rounding may leave -1e-17 where the two are alike

    return _by_rows(divergence, reference, other)


def cosines(reference: Logits, other: Logits) -> Values:
    """Cosine between the rows of two [n, classes], [n]; 1 where both are 0, 0 where one is."""

    def cosine(a: Logits, b: Logits) -> Values:
        a64, b64 = a.astype(np.float64), b.astype(np.float64)
        lengths = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
        same = (a64 == b64).all(axis=1).astype(np.float64)
        found: Values = np.divide((a64 * b64).sum(axis=1), lengths, out=same, where=lengths > 0)
        return np.clip(found, -1.0, 1.0)

    return _by_rows(cosine, reference, other)


def log_softmax(logits: Logits) -> Values:
    """Logarithms of the softmax over the last axis."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _by_rows(function: Callable[..., Values], *arrays: NDArray[np.generic]) -> Values:
    starts = range(0, len(arrays[0]), _ROWS)
    return np.concatenate([function(*(x[i : i + _ROWS] for x in arrays)) for i in starts])
