"""One attention block as ONNX text whose steps a test can replace, and runs of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from slimdeploy.graph.passes import Pass, run
from slimdeploy.graph.work import Work
from tests.graph.text import model

BATCH, TOKENS, WIDTH, HEADS = 3, 5, 6, 2
Floats = NDArray[np.float32]

STEPS = {
    "query": "qp = MatMul(x, wq) qb = Add(qp, bq) qr = Reshape(qb, split) "
    "q = Transpose<perm=[0, 2, 1, 3]>(qr)",
    "key": "kp = MatMul(x, wk) kb = Add(bk, kp) kr = Reshape(kb, split) "
    "k = Transpose<perm=[0, 2, 3, 1]>(kr)",
    "value": "vp = MatMul(x, wv) vb = Add(vp, bv) vr = Reshape(vb, split) "
    "v = Transpose<perm=[0, 2, 1, 3]>(vr)",
    "scores": "s = MatMul(q, k) m = Mul(s, scale)",
    "softmax": "w = Softmax(m)",
    "sum": "a = MatMul(w, v)",
    "merge": "at = Transpose<perm=[0, 2, 1, 3]>(a) ar = Reshape(at, join)",
    "output": "op = MatMul(ar, wo) o = Add(op, bo)",
    "stream": "y = Add(x, o)",
}


def constants(seed: int = 0) -> dict[str, Any]:
    """Random weights, and what the steps and their replacements need beside them."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Floats:
        return rng.normal(size=shape).astype(np.float32)

    found: dict[str, Any] = {f"w{name}": draw(WIDTH, WIDTH) for name in "qkvo"}
    found |= {f"b{name}": draw(WIDTH) for name in "qkvo"}
    found |= {"scale": np.float32(0.6), "root": np.float32(0.8), "gamma": draw(WIDTH)}
    found |= {"mask": draw(1, HEADS, TOKENS, TOKENS), "table": draw(TOKENS, WIDTH // HEADS)}
    found |= {"split": [0, 0, HEADS, WIDTH // HEADS], "join": [0, 0, WIDTH]}
    return found


def block(opset: int = 18, **steps: str) -> onnx.ModelProto:
    """The block with some of its `STEPS` replaced."""
    body = " ".join({**STEPS, **steps}.values())
    signature = f"float[B,{TOKENS},{WIDTH}] x => float[B,{TOKENS},{WIDTH}] y"
    return model(signature, body, opset, **used(body, constants()))


def used(body: str, found: dict[str, Any]) -> dict[str, Any]:
    """The constants that a text names."""
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: value for name, value in found.items() if name in words}


def optimised(dense: onnx.ModelProto, *passes: Pass) -> Work:
    """The graph after the passes, from a private copy."""
    work = Work.of(dense)
    run(passes, work)
    return work


def infer(source: Work | onnx.ModelProto, **feeds: Floats) -> Floats:
    """The first output, by ONNX Runtime without its own rewrites."""
    exported = source.export() if isinstance(source, Work) else source
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(exported.SerializeToString(), options)
    result: Floats = session.run(None, feeds)[0]
    return result


def images(seed: int = 1) -> Floats:
    """A random stream [B, N, D]."""
    return np.random.default_rng(seed).normal(size=(BATCH, TOKENS, WIDTH)).astype(np.float32)


def difference(work: Work, dense: onnx.ModelProto) -> float:
    """Largest difference of the results, as a share of their scale."""
    before, after = infer(dense, x=images()), infer(work, x=images())
    return float(np.abs(after - before).max() / np.abs(before).max())
