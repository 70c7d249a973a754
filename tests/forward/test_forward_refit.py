"""The refit by ONNX Runtime and numpy gives what the one in PyTorch gives."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from slimdeploy.errors import InputError
from slimdeploy.forward.cut import Cutter
from slimdeploy.forward.linear import Linear, find_linear
from slimdeploy.forward.refit import Refit, refit_graph, transfer
from slimdeploy.forward.ridge import Normal, RidgeOptions
from slimdeploy.graph import GraphOptions, dense_graph, slim_graph
from slimdeploy.graph.masked import masked_graph
from slimdeploy.graph.tokens.keep import token_order
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.model import SlimVit
from slimdeploy.slim.refit import refit_model
from slimdeploy.store import open_store
from tests.forward.models import Case, ids_in, relative
from tests.graph.exports import run


def refitted(case: Case, select: Any = "gather", budget: int = 1 << 29) -> tuple[Any, Refit]:
    slim = slim_graph(case.model, case.keep, GraphOptions(select=select)).model
    order = token_order(slim, case.keep, case.geometry.tokens)
    ids = ids_in(order, case.keep)
    with open_store(budget) as store:
        done = refit_graph(
            case.dense, slim, case.blocks, ids, case.geometry.head_reads, case.feed, store
        )
        assert store.on_disk == 0
    return slim, done


def by_torch(case: Case) -> Any:
    state = Calibration(case.torch, case.geometry, case.tensor, batch_size=8)
    model = copy.deepcopy(case.torch)
    refit_model(state, model, case.keep, RidgeOptions())
    return model


CASES = [
    ("plain", "dynamo18", "gather"),
    ("plain", "dynamo23", "slice"),
    ("layerscale", "dynamo20", "one-hot"),
    ("distilled", "script17-fused", "slice-concat"),
    ("no_embed_class", "script17", "slice"),
    ("pre_norm", "dynamo18-fused", "gather"),
]


@pytest.mark.parametrize(("kind", "exporter", "select"), CASES)
def test_it_is_the_refit_of_the_pytorch_path(kind: str, exporter: str, select: str) -> None:
    case = Case(kind, exporter)
    slim, done = refitted(case, select)
    assert done.notes == []
    assert len(done.changed) == 4  # block 1 reads all keys: nothing is lost there
    reference = by_torch(case)
    with torch.no_grad():
        wanted = SlimVit(reference, case.keep)(case.tensor)
        dense = SlimVit(case.torch, case.keep)(case.tensor)
    assert relative(dense, wanted) > 0.05
    assert relative(run(slim, case.images), wanted) < 1e-4
    found = find_linear(done.slim, case.blocks[1].attention, case.blocks[1].entering)
    assert isinstance(found, Linear)
    weight, bias = found.values(done.slim)
    proj = reference.blocks[1].attn.proj
    assert relative(weight.T, proj.weight.detach()) < 1e-4
    assert relative(bias, proj.bias.detach()) < 1e-4


def test_weights_in_the_dense_graph_and_its_masked_form() -> None:
    case = Case("layerscale", "dynamo20")
    slim, done = refitted(case)
    before = run(case.dense, case.images)
    transfer(done, case.dense)
    assert relative(run(case.dense, case.images), before) > 0.01
    masked = masked_graph(case.dense, case.keep)
    assert relative(run(slim, case.images), run(masked, case.images)) < 2e-5
    optimised = dense_graph(slim, GraphOptions(optimize=True)).model
    assert relative(run(optimised, case.images), run(masked, case.images)) < 2e-5


def test_activations_on_disk_change_nothing() -> None:
    case = Case("plain", "dynamo18")
    inside, outside = refitted(case)[0], refitted(case, budget=0)[0]
    assert np.array_equal(run(inside, case.images), run(outside, case.images))


def test_shared_weights_are_changed_for_their_own_block_only() -> None:
    case = Case("plain", "dynamo18")
    cutter = Cutter(case.dense)
    first, second = (find_linear(cutter, b.attention, b.entering) for b in case.blocks[:2])
    assert isinstance(first, Linear)
    assert isinstance(second, Linear)
    shared = cutter.makers[first.product].input[1]
    cutter.makers[second.product].input[1] = shared
    cutter.refresh()
    old = first.values(cutter)[0]
    second.replace(cutter, old + 1, None)
    assert np.array_equal(first.values(cutter)[0], old)
    assert relative(second.values(cutter)[0], old + 1) < 1e-6


def test_half_precision_files_are_solved_in_double_and_stay_half() -> None:
    case = Case("plain", "dynamo18")
    half = copy.deepcopy(case.dense)
    for tensor in half.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*half.graph.input, *half.graph.output, *half.graph.value_info):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    dense, slim = dense_graph(half).model, slim_graph(half, case.keep).model
    plain = copy.deepcopy(slim)
    with open_store() as store:
        refit_graph(dense, slim, case.blocks, case.keep, [0], case.feed, store)
    kinds = {t.data_type for t in slim.graph.initializer if len(t.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    wanted = run(refitted(case)[0], case.images)
    images = case.images.astype(np.float16)
    assert relative(run(slim, images), wanted) < 0.02 < relative(run(plain, images), wanted)


def test_ridge_is_the_minimum_of_what_it_says() -> None:
    generator = np.random.default_rng(0)
    a, y = generator.normal(size=(40, 6)), generator.normal(size=(40, 3))
    w = generator.uniform(0.5, 3, 40)
    normal = Normal(bias=True)
    for part in (slice(0, 25), slice(25, 40)):
        normal.add(a[part], y[part], w[part])
    change, shift = normal.solve(0.7)
    assert shift is not None
    penalty = 0.7 * np.diagonal(a.T @ (a * w[:, None])).mean()
    left = a @ change + shift - y
    assert np.abs(a.T @ (left * w[:, None]) + penalty * change).max() < 1e-4 * penalty
    assert np.abs(w @ left).max() < 1e-4 * w.sum()


def test_the_ridge_must_be_positive() -> None:
    with pytest.raises(InputError, match=r"--ridge 0: must be above 0"):
        RidgeOptions(strength=0)
