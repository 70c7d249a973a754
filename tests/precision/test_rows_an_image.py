"""What `--least-rows` counts: rows for one image, whether the batch is fixed or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slimdeploy.graph.work import Work
from slimdeploy.precision.options import PrecisionOptions
from slimdeploy.precision.products import chosen, find_products, rows
from tests.graph.text import model

SQUARE = np.eye(16, dtype=np.float32)


@pytest.mark.parametrize("batch", ["B", "1", "8"])
@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul(x, w)",
        "h = Reshape(x, two) g = MatMul(h, w) y = Reshape(g, three)",
    ],
)
def test_rows_are_of_one_image(batch: str, body: str) -> None:
    shapes: dict[str, Any] = {"two": [-1, 16], "three": [-1, 5, 16]} if "two" in body else {}
    head = f"float[{batch},5,16] x => float[{batch},5,16] y"
    work = Work.of(model(head, body, 20, w=SQUARE, **shapes))
    assert [rows(work, product) for product in find_products(work)] == [5]
    few = PrecisionOptions("int8", also=("embedding",), least_rows=6)
    assert chosen(work, few) == []
    assert len(chosen(work, PrecisionOptions("int8", also=("embedding",), least_rows=5))) == 1


@pytest.mark.parametrize("batch", ["B", "4"])
def test_a_convolution_gives_as_many_rows_as_pixels(batch: str) -> None:
    kernels = np.ones((2, 3, 2, 2), np.float32)
    body = "y = Conv<strides = [2, 2]>(x, w)"
    work = Work.of(model(f"float[{batch},3,8,8] x => float[{batch},2,4,4] y", body, 20, w=kernels))
    assert [rows(work, product) for product in find_products(work)] == [16]
