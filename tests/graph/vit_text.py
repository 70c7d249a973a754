"""A two-block transformer as ONNX text, and the same in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.graph.text import model

TOKENS, WIDTH = 6, 4
Floats = NDArray[np.float32]

_BLOCK = """
    h{i} = LayerNormalization(x{i}, g{i}, b{i})
    q{i} = MatMul(h{i}, wq{i}){rotate_q}
    k{i} = MatMul(h{i}, wk{i}){rotate_k}
    v{i} = MatMul(h{i}, wv{i})
    t{i} = Transpose<perm=[0, 2, 1]>({k}{i})
    s{i} = MatMul({q}{i}, t{i})
    m{i} = Add(s{i}, bias{i})
    p{i} = Softmax(m{i})
    a{i} = MatMul(p{i}, v{i})
    o{i} = MatMul(a{i}, wo{i})
    r{i} = Add(x{i}, o{i})
    e{i} = MatMul(r{i}, wm{i})
    f{i} = Tanh(e{i})
    x{j} = Add(r{i}, f{i})
"""
# Every token but the first is scaled by a table, as rotary position embeddings do.
_ROTATE = """
    {n}c{i} = Slice({n}{i}, zeros, ones, ones)
    {n}p{i} = Slice({n}{i}, ones, tokens, ones)
    {n}m{i} = Mul({n}p{i}, table)
    {n}r{i} = Concat<axis=1>({n}c{i}, {n}m{i})
"""
HEADS = {
    "class": ("y = Gather<axis=1>(x2, zero)", "y"),
    "slice": ("c = Slice(x2, one, three, one) y = Concat<axis=1>(c, c)", "y"),
    "split": ("y, rest = Split<axis=1>(x2, parts)", "y"),
    "mean": ("y = ReduceMean<keepdims=0>(x2, one)", "y"),
    "tokens": ("y = Relu(x2)", "y"),
}
_OUTPUT = {
    "class": f"B,{WIDTH}",
    "slice": f"B,4,{WIDTH}",
    "split": f"B,2,{WIDTH}",
    "mean": f"B,{WIDTH}",
    "tokens": f"B,{TOKENS},{WIDTH}",
}


def weights(seed: int = 0) -> dict[str, Floats]:
    """Random weights, and an additive [N, N] bias on the scores of each block."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(2):
        shapes |= {f"{name}{i}": (WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wo", "wm")}
        shapes |= {f"g{i}": (WIDTH,), f"b{i}": (WIDTH,), f"bias{i}": (TOKENS, TOKENS)}
    shapes["table"] = (TOKENS - 1, WIDTH)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def vit(head: str = "class", rotary: bool = False, seed: int = 0) -> onnx.ModelProto:
    """Two blocks on `x0` [B, 6, 4] and one of `HEADS`."""
    body = _block(0, rotary) + _block(1, rotary) + HEADS[head][0]
    signature = f"float[B,{TOKENS},{WIDTH}] x0 => float[{_OUTPUT[head]}] y"
    extra = {"zero": 0, "one": [1], "three": [3], "parts": [2, TOKENS - 2]}
    extra |= {"zeros": [0], "ones": [1], "tokens": [TOKENS]}
    return model(signature, body, **weights(seed), **extra)


def _block(i: int, rotary: bool) -> str:
    rotate = {f"rotate_{n}": _ROTATE.format(n=n, i=i) if rotary else "" for n in "qk"}
    return _BLOCK.format(
        i=i, j=i + 1, q="qr" if rotary else "q", k="kr" if rotary else "k", **rotate
    )


def compact(
    x: Floats, keep: Sequence[Sequence[int]], rotary: bool = False, seed: int = 0
) -> Floats:
    """The stream after both blocks, with block i computing the tokens keep[i] only."""
    w = weights(seed)
    held = list(range(TOKENS))
    for i, ids in enumerate(keep):
        local = [held.index(token) for token in ids]
        h = _norm(x, w[f"g{i}"], w[f"b{i}"])
        table = np.vstack(
            [np.ones((1, WIDTH)), w["table"] if rotary else np.ones((TOKENS - 1, WIDTH))]
        )
        q, k = h[:, local] @ w[f"wq{i}"] * table[ids], h @ w[f"wk{i}"] * table[held]
        scores = q @ k.swapaxes(1, 2)
        scores = scores + w[f"bias{i}"][np.ix_(list(ids), held)]
        exp = np.exp(scores - scores.max(-1, keepdims=True))
        x = x[:, local] + exp / exp.sum(-1, keepdims=True) @ (h @ w[f"wv{i}"]) @ w[f"wo{i}"]
        x = x + np.tanh(x @ w[f"wm{i}"])
        held = list(ids)
    return x


def _norm(x: Floats, scale: Floats, shift: Floats) -> Floats:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    result: Floats = centred / np.sqrt(variance + 1e-5) * scale + shift
    return result
