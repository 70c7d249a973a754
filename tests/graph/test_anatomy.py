"""Reading a graph's parts, against what PyTorch says of the same model."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph.anatomy import Anatomy, read_anatomy
from slimdeploy.graph.anatomy.geometry import check_geometry, geometry_of
from slimdeploy.graph.outputs import keep_outputs
from slimdeploy.graph.slimming import prepared
from slimdeploy.slim.timm_models import describe
from tests.conftest import geometry
from tests.graph.exports import build, export
from tests.graph.vit_text import vit

CASES = [
    ("plain", "script17"),
    ("plain", "dynamo18-fused"),
    ("plain", "dynamo23"),
    ("distilled", "script17-fused"),
    ("registers", "script17"),
    ("layerscale", "script17"),
    ("no_embed_class", "script17-fused"),
    ("pre_norm", "script17"),
]


def anatomy(kind: str, exporter: str) -> Anatomy:
    return read_anatomy(prepared(export(kind, exporter, True)))


@pytest.mark.parametrize(("kind", "exporter"), CASES)
def test_the_file_says_what_the_model_says(kind: str, exporter: str) -> None:
    found = geometry_of(anatomy(kind, exporter), "vit.onnx")
    wanted = describe(build(kind, False), "vit")
    for field in type(found).model_fields:
        if field not in ("source", "name", "kwargs"):
            assert getattr(found, field) == getattr(wanted, field), field


@pytest.mark.parametrize("kind", ["average", "map"])
def test_a_head_that_pools_is_told_from_one_that_reads(kind: str) -> None:
    head = anatomy(kind, "script17").head
    assert (head.reads, head.pools, head.refusal) == ((), tuple(range(16)), None)


def test_tables_along_the_tokens_are_listed() -> None:
    tables = anatomy("plain", "script17").tables
    assert [(table.shape, table.axes) for table in tables] == [((1, 17, 48), (1,))]


def test_a_graph_without_an_image_is_refused() -> None:
    with pytest.raises(GraphError, match="tensor 'x0': its tokens are not patches of an image"):
        read_anatomy(prepared(vit()))


def test_an_output_of_all_tokens_is_named_until_it_is_given_up() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(export("plain", "script17", True))
    last = next(n for n in reversed(model.graph.node) if n.op_type == "LayerNormalization")
    stream = onnx.helper.make_tensor_value_info(last.output[0], 1, ["batch", 17, 48])
    model.graph.output.append(stream)
    head = read_anatomy(prepared(model)).head
    assert head.refusal is not None
    assert f"output '{last.output[0]}' reads all 17 tokens" in head.refusal
    with pytest.raises(InputError, match="--outputs logit: not an output; there are: logits"):
        keep_outputs(model, ["logit"])
    keep_outputs(model, ["logits"])
    assert read_anatomy(prepared(model)).head.reads == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 96}, "s.json: model.width is 96, small has 48; the schedule is for another"),
        ({"prefix": ("class", "register")}, "s.json: model.prefix has 2 tokens, small has 1"),
        ({"head_reads": (0, 3)}, r"model.head_reads is \(0, 3\), small has \(0,\)"),
    ],
)
def test_a_schedule_for_another_model_names_the_field(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_geometry(geometry(), geometry(**changes), "s.json")
