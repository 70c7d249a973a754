"""GELU by whatever nodes: recognised by what it computes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx
import pytest

from slimdeploy.graph.optimize import ErfGelu
from tests.graph.optimize.attention_text import Floats, infer, optimised
from tests.graph.text import lines, model

X = "float[B,5] x => float[B,5] y"
INSIDE = ["d = Div(x, root)", "d = Mul(x, inverse)", "d = Mul(inverse, x)"]
ONE = ["a = Add(e, one)", "a = Add(one, e)"]
PRODUCTS = [
    "h = Mul(half, a) y = Mul(x, h)",  # torch's dynamo exporter at opset 18
    "h = Mul(x, a) y = Mul(h, half)",  # its TorchScript exporter
    "h = Mul(a, x) y = Div(h, two)",
    "h = Mul(x, half) y = Mul(h, a)",
    "h = Mul(half, x) y = Mul(a, h)",
]
CUBE = ["c = Pow(x, three)", "c2 = Mul(x, x) c = Mul(c2, x)"]


def numbers(body: str, kind: type = np.float32) -> dict[str, np.ndarray]:
    known = {"root": math.sqrt(2), "inverse": 1 / math.sqrt(2), "one": 1.0, "half": 0.5}
    known |= {"two": 2.0, "three": 3.0, "cubic": 0.044715, "tanh": math.sqrt(2 / math.pi)}
    known |= {"quick": 1.702}
    return {name: np.asarray(value, kind) for name, value in known.items() if name in body}


def gelu(body: str, opset: int) -> onnx.ModelProto:
    return model(X, body, opset, **numbers(body))


def feed(kind: type = np.float32) -> Floats:
    return np.linspace(-7, 7, 35).reshape(7, 5).astype(kind)


FORMS = [
    f"{inside} e = Erf(d) {one} {product}"
    for inside, one, product in itertools.product(INSIDE, ONE, PRODUCTS)
]


@pytest.mark.parametrize("body", FORMS)
def test_every_form_becomes_one_operator(body: str) -> None:
    dense = gelu(body, 20)
    work = optimised(dense, ErfGelu())
    assert [node.op for node in work.graph.nodes] == ["Gelu"]
    assert np.abs(infer(work, x=feed()) - infer(dense, x=feed())).max() < 2e-6
    assert work.notes == []


@pytest.mark.parametrize("body", FORMS[::7])
def test_without_the_operator_the_form_is_the_one_that_runtimes_fuse(body: str) -> None:
    dense = gelu(body, 18)
    work = optimised(dense, ErfGelu())
    assert [node.op for node in work.graph.nodes] == ["Div", "Erf", "Add", "Mul", "Mul"]
    assert lines(work)[-1].startswith("y = Mul(y.product, ")
    assert np.abs(infer(work, x=feed()) - infer(dense, x=feed())).max() < 2e-6
    assert len(work.notes) == 1
    assert "opset 18 has no Gelu" in work.notes[0]
    assert "export with 20 or later" in work.notes[0]


@pytest.mark.parametrize("cube", CUBE)
def test_the_tanh_form_is_kept_apart(cube: str) -> None:
    body = f"{cube} s = Mul(c, cubic) i = Add(x, s) u = Mul(i, tanh) t = Tanh(u) "
    body += "a = Add(t, one) h = Mul(x, half) y = Mul(h, a)"
    dense = gelu(body, 20)
    work = optimised(dense, ErfGelu())
    assert [node.op for node in work.graph.nodes] == ["Gelu"]
    assert work.graph.nodes[0].attrs["approximate"] == "tanh"
    assert np.abs(infer(work, x=feed()) - infer(dense, x=feed())).max() < 2e-6
    assert lines(optimised(gelu(body, 18), ErfGelu())) == lines(gelu(body, 18))


def test_half_precision_numbers_are_recognised() -> None:
    body = FORMS[0]
    dense = model(X.replace("float", "float16"), body, 20, **numbers(body, np.float16))
    work = optimised(dense, ErfGelu())
    assert [node.op for node in work.graph.nodes] == ["Gelu"]
    found = infer(work, x=feed(np.float16)).astype(np.float64)
    assert np.abs(found - infer(dense, x=feed(np.float16))).max() < 1e-2


@pytest.mark.parametrize(
    "body",
    [
        "s = Mul(x, quick) g = Sigmoid(s) y = Mul(x, g)",  # QuickGELU
        "y = Tanh(x)",
    ],
)
def test_other_activations_stay_without_a_word(body: str) -> None:
    work = optimised(gelu(body, 20), ErfGelu())
    assert lines(work) == lines(gelu(body, 20))
    assert work.notes == []


@pytest.mark.parametrize(
    "body",
    [
        "d = Div(x, two) e = Erf(d) a = Add(e, one) h = Mul(half, a) y = Mul(x, h)",
        "d = Div(x, root) e = Erf(d) a = Add(e, half) h = Mul(half, a) y = Mul(x, h)",
        "d = Div(x, root) e = Erf(d) a = Add(e, one) h = Mul(half, a) z = Neg(x) y = Mul(z, h)",
        "d = Div(x, root) e = Erf(d) a = Add(e, one) h = Mul(half, a) y = Add(x, h)",
    ],
)
def test_what_only_looks_like_gelu_stays_and_is_noted(body: str) -> None:
    dense = gelu(body, 20)
    work = optimised(dense, ErfGelu())
    assert lines(work) == lines(dense)
    assert work.notes == ["ErfGelu left alone node 'e' (Erf): no GELU is computed around it"]


def test_a_value_that_others_read_is_not_taken_away() -> None:
    body = (
        "d = Div(x, root) e = Erf(d) a = Add(e, one) h = Mul(half, a) g = Mul(x, h) y = Add(g, e)"
    )
    dense = gelu(body, 20)
    assert lines(optimised(dense, ErfGelu())) == lines(dense)


@pytest.mark.parametrize("body", ["t = Tanh(x) y = Mul(x, t)", "t = Tanh(x) y = Sub(x, t)"])
def test_activations_without_constants_stay(body: str) -> None:
    assert len(lines(optimised(model(X, body, 20), ErfGelu()))) == 2
