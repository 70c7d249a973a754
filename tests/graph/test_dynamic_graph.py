"""Graphs that choose: against the dense graph with each image's other tokens masked."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, get_args

import numpy as np
import onnx
import pytest

from slimdeploy.dynamic import Dynamic, Scorer
from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph import GraphOptions, check_graph, slim_graph
from slimdeploy.graph.dynamic import ChoicePlan, choice_names
from slimdeploy.graph.masked import masked_graph
from slimdeploy.graph.slimming import SlimGraph
from slimdeploy.measure.choices import chosen_ids, with_choices
from tests.graph.exports import EXPORTERS, export, run

PREFIX = {"plain": 1, "distilled": 2, "registers": 5, "no_embed_class": 5}
READS = {"distilled": [0, 1]}


def images(count: int = 3) -> Any:
    generator = np.random.default_rng(1)
    coarse = generator.standard_normal((count, 3, 8, 8), dtype=np.float32)
    return coarse.repeat(8, axis=2).repeat(8, axis=3)


def counts_of(kind: str) -> list[int]:
    prefix = PREFIX.get(kind, 1)
    return [prefix + 11, prefix + 6, len(READS.get(kind, [0]))]


def chosen(scorer: Scorer) -> Dynamic:
    if scorer != "predictor":
        return Dynamic(scorer=scorer)
    rows = np.random.default_rng(0).standard_normal((2, 48)).tolist()
    return Dynamic(scorer=scorer, weights=(*map(tuple, rows), None))


def slimmed(
    kind: str, exporter: str, scorer: Scorer, options: GraphOptions | None = None
) -> SlimGraph:
    counts, prefix = counts_of(kind), PREFIX.get(kind, 1)
    keep = [*(list(range(count)) for count in counts[:-1]), READS.get(kind, [0])]
    dense = export(kind, exporter, True)
    plan = ChoicePlan(
        chosen(scorer), tuple(counts), 16 + prefix, prefix, tuple(READS.get(kind, [0]))
    )
    return slim_graph(dense, keep, options, plan=plan)


def choices(slim: onnx.ModelProto, kind: str, batch: Any) -> list[Any]:
    """Global ids per block, [n, count], ascending."""
    probed, names = with_choices(slim)
    import onnxruntime as ort

    session = ort.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(
        zip(
            [o.name for o in session.get_outputs()],
            session.run(None, {"image": batch}),
            strict=True,
        )
    )
    rows = [None if name is None else found[name] for name in names]
    read = READS.get(kind, [0])
    return chosen_ids(rows, counts_of(kind), 16 + PREFIX.get(kind, 1), read, len(batch))


def assert_masked_equal(slim: onnx.ModelProto, kind: str, exporter: str) -> None:
    batch = images()
    found, ids = run(slim, batch), choices(slim, kind, batch)
    for index in range(len(batch)):
        keep = [sorted(layer[index].tolist()) for layer in ids]
        reference = masked_graph(export(kind, exporter, True), keep)
        wanted = run(reference, batch[index : index + 1])[0]
        assert np.abs(found[index] - wanted).max() <= 2e-5 * np.abs(wanted).max()
    assert len({tuple(sorted(row)) for row in ids[1].tolist()}) > 1


@pytest.mark.parametrize("scorer", get_args(Scorer))
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_every_exporter(exporter: str, scorer: Scorer) -> None:
    made = slimmed("plain", exporter, scorer)
    assert [block.queries for block in made.blocks] == counts_of("plain")
    assert_masked_equal(made.model, "plain", exporter)


@pytest.mark.parametrize("kind", ["distilled", "registers", "layerscale", "pre_norm"])
def test_every_kind(kind: str) -> None:
    made = slimmed(kind, "dynamo18", "predictor")
    assert_masked_equal(made.model, kind, "dynamo18")
    prefix = PREFIX.get(kind, 1)
    for layer in choices(made.model, kind, images())[:-1]:
        assert (layer[:, :prefix] == np.arange(prefix)).all()


@pytest.mark.parametrize("scorer", get_args(Scorer))
def test_optimised_graphs_choose_the_same(scorer: Scorer) -> None:
    plain = slimmed("plain", "dynamo18", scorer).model
    made = slimmed("plain", "dynamo18", scorer, GraphOptions(optimize=True)).model
    assert_masked_equal(made, "plain", "dynamo18")
    pairs = zip(choices(plain, "plain", images()), choices(made, "plain", images()), strict=True)
    for one, two in pairs:
        assert (np.sort(one) == np.sort(two)).all()


def test_torch_chooses_and_computes_the_same() -> None:
    import torch

    from slimdeploy.slim.dynamic import DynamicVit
    from tests.graph.exports import build

    batch, model = images(6), build("plain", False)
    model.pretrained_cfg = {}
    for scorer in get_args(Scorer):
        made = slimmed("plain", "dynamo18", scorer).model
        slim = DynamicVit(model, counts_of("plain"), chosen(scorer)).eval()
        with torch.no_grad():
            wanted, ids = slim(torch.from_numpy(batch)), slim.choices(torch.from_numpy(batch))
        for one, two in zip(ids, choices(made, "plain", batch), strict=True):
            assert (one.numpy() == two).all()
        found = run(made, batch)
        assert np.abs(found - wanted.numpy()).max() <= 2e-5 * float(wanted.abs().max())


def test_equal_scores_fall_to_the_first_patch() -> None:
    """A constant image without position embeddings gives every patch the same token."""
    dense = onnx.ModelProto()
    dense.CopyFrom(export("plain", "dynamo18", True))
    for tensor in dense.graph.initializer:
        if "pos_embed" in tensor.name:
            zeros = np.zeros(tuple(tensor.dims), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    keep = [list(range(12)), list(range(7)), [0]]
    plan = ChoicePlan(Dynamic(scorer="token-norm"), (12, 7, 1), 17, 1, (0,))
    made = slim_graph(dense, keep, plan=plan)
    found = choices(made.model, "plain", np.ones((1, 3, 64, 64), np.float32))
    assert found[0].tolist() == [list(range(12))]


def test_the_graph_holds_a_topk_for_each_choice_and_no_more() -> None:
    made = slimmed("plain", "dynamo18", "predictor").model
    ops = [node.op_type for node in made.graph.node]
    assert ops.count("TopK") == 2
    assert ops.count("GatherND") == 4
    names = choice_names(made)
    assert names is not None
    assert [name is None for name in names] == [False, False, True]
    dense = export("plain", "dynamo18", True)
    with pytest.raises(GraphError, match="4 GatherND nodes were added"):
        check_graph(made, None, dense)
    assert len(check_graph(made, None, dense, added=Counter(TopK=2, GatherND=4))) == 3


def test_shapes_are_static_but_for_the_batch() -> None:
    made = slimmed("plain", "dynamo18", "predictor").model
    inferred = onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)
    shapes = {v.name: v.type.tensor_type.shape for v in inferred.graph.value_info}
    names = [name for name in json.loads(made.metadata_props[-1].value) if name]
    assert [shapes[name].dim[1].dim_value for name in names] == [12, 7]


@pytest.mark.parametrize("select", ["slice", "slice-concat", "one-hot"])
def test_forms_for_constant_positions_are_refused(select: Any) -> None:
    with pytest.raises(InputError, match=f"--select {select}: is for positions known beforehand"):
        slimmed("plain", "dynamo18", "token-norm", GraphOptions(select))


def test_a_probe_of_two_blocks_still_chooses() -> None:
    made = slimmed("plain", "dynamo18", "token-norm", GraphOptions(prefix_blocks=2))
    assert [block.queries for block in made.blocks] == counts_of("plain")[:2]
    assert len(choice_names(made.model) or []) == 2


def test_a_predictor_needs_no_number_beyond_half_precision() -> None:
    made = slimmed("plain", "dynamo18", "predictor").model
    first = [t for t in made.graph.initializer if t.name.endswith("choice.first")]
    assert len(first) == 2
    assert all(abs(onnx.numpy_helper.to_array(t)).max() <= 65504 for t in first)
