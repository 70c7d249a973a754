"""Reading an engine's kernels, and what the linters say of them."""

from __future__ import annotations

import json

import pytest

from slimdeploy.engine.building.failures import explain, killed
from slimdeploy.engine.graph_facts import GraphFacts, is_selection
from slimdeploy.engine.layers import (
    EngineLayer,
    Tensor,
    layers_of_inspector,
    layers_of_log,
    weights_by_type,
    with_constants,
)
from slimdeploy.engine.lint import lint, moves_only, selects_only, summary
from slimdeploy.engine.tokens import check_tokens, engine_tokens
from slimdeploy.engine.trt.events import Phases
from slimdeploy.engine.trt.parse import Attention
from slimdeploy.errors import GateError, InputError, MissingError

NO_FACTS = GraphFacts()


def kernel(name: str, *nodes: str, kind: str = "kgen", dtype: str = "float16") -> EngineLayer:
    tensor = Tensor("t", (-1, 4, 8), dtype)
    return EngineLayer(name, kind, nodes, (tensor,), (), (tensor,))


def attention(name: str, queries: int, keys: int, width: int = 64) -> EngineLayer:
    """A fused attention as the compiler tells of it: K arrives transposed."""
    shapes = [(-1, queries, width), (-1, width, keys), (-1, keys, width)]
    inputs = tuple(Tensor(str(i), shape, "float16") for i, shape in enumerate(shapes))
    out = (Tensor("o", (-1, queries, width), "float16"),)
    return EngineLayer("_gemm_mha_v2_myl0_8", "kgen", ("qk", name, "av"), inputs, (), out)


# Cut out of a log that TensorRT-RTX 1.7.1 wrote.
LOG = """Engine generation completed in 0.3 seconds.
Layers:
Name: __mye1_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , \
StreamId: 0, Metadata:\x20
Name: a+b_myl0_4, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,128], Strides: [128,1], \
StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { \
Name: w, Dimensions: [1,128,384], Strides: [49152,384,1], StrideOrder: [2,1,0], Datatype: Half, \
Format: (Linear) Row major linear format }, { Name: alpha, Dimensions: [1], Strides: [1], \
StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: \
y, Dimensions: [1,-1,384], Strides: [-1,384,1], StrideOrder: [2,1,0], Datatype: Half, Format: \
(Linear) Row major linear format }], TacticName: stub, StreamId: 0, Metadata: [ONNX Layer: \
n_12][ONNX Layer: /a/b.1/MatMul]

I/O Tensors:
 Name: images, IOMode: Input, DataType: Float, Dimensions: [-1,3,96,96]
"""


def test_a_build_log() -> None:
    first, second = layers_of_log("INFO\n" + LOG)
    assert (first.kind, first.computes, first.nodes) == ("shape_call", False, ())
    assert second.name == "a+b_myl0_4"
    assert second.nodes == ("n_12", "/a/b.1/MatMul")
    assert second.inputs == (Tensor("x", (-1, 128), "float16"),)
    assert second.outputs[0].shape == (1, -1, 384)
    assert weights_by_type([first, second, second]) == {"float16": 49152, "float32": 1}
    assert layers_of_log("a log without a table") == []


# Written by hand to the form of public logs of TensorRT 10: constants among the inputs, the type by
# another name, in some versions a location. No such log was written here.
LOG_OF_10 = """Engine generation completed in 3 seconds.
Layers:
Name: __myl_CastAddMul_myl0_0, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [-1,17,192], \
Format/Datatype: Float }, { Name: gain, Dimensions: [192], Format/Datatype: Half }], Outputs: [ { \
Name: h, Dimensions: [-1,17,192], Format/Datatype: Half }], TacticName: t, StreamId: 0, \
Metadata: [ONNX Layer: norm]\x1e[ONNX Layer: cast]
Name: _gemm_mha_v2_myl0_1, LayerType: kgen, Inputs: [ { Name: h, Location: Device, Dimensions: \
[-1,17,64], Format/Datatype: Half }, { Name: kt, Dimensions: [-1,64,17], Format/Datatype: Half }, \
{ Name: h, Dimensions: [-1,17,64], Format/Datatype: Row major linear FP16 format }], Outputs: [ { \
Name: y, Location: Device, Dimensions: [-1,5,64], Format/Datatype: Half }], TacticName: t, \
StreamId: 0, Metadata: [ONNX Layer: softmax]

Bindings:
x
y
"""


def test_a_build_log_of_tensorrt_10() -> None:
    first, second = with_constants(layers_of_log(LOG_OF_10), ["x", "kt"])
    assert (first.kind, first.nodes) == ("kgen", ("norm", "cast"))
    assert first.inputs == (Tensor("x", (-1, 17, 192), "float32"),)
    assert first.constants == (Tensor("gain", (192,), "float16"),)
    assert first.outputs == (Tensor("h", (-1, 17, 192), "float16"),)
    assert [(t.name, t.dtype) for t in second.inputs] == [(n, "float16") for n in ("h", "kt", "h")]
    assert second.outputs == (Tensor("y", (-1, 5, 64), "float16"),)
    assert weights_by_type([first, second]) == {"float16": 192}
    blocks = [Attention("softmax", 17, 17)]
    assert engine_tokens([first, second], blocks) == [Attention("softmax", 5, 17)]
    assert lint([first, second], blocks, GraphFacts(("norm",))) == []


def test_constants_that_are_told_stay_as_they_are() -> None:
    layers = layers_of_log(LOG)
    assert with_constants(layers, []) == layers


def test_an_inspectors_json() -> None:
    """Written by hand to TensorRT 10's documented form: no inspector has run here."""
    rows = [
        {
            "Name": "_gemm_mha_v2_myl0_1",
            "LayerType": "kgen",
            "Inputs": [{"Name": "q", "Dimensions": [2, 17, 64], "Format/Datatype": "Half"}],
            "Outputs": [{"Name": "o", "Dimensions": [2, 17, 64], "Format/Datatype": "Half"}],
            "Metadata": "[ONNX Layer: s]\x1e[ONNX Layer: t]",
        },
        {
            "Name": "Reformatting CopyNode for Input Tensor 0",
            "LayerType": "Reformat",
            "Inputs": [
                {"Name": "i", "Dimensions": [2], "Format/Datatype": "Row major linear FP32 format"}
            ],
            "Constants": None,
        },
    ]
    found = layers_of_inspector(json.dumps({"Layers": rows, "Bindings": []}))
    assert found[0].is_attention
    assert found[0].nodes == ("s", "t")
    assert found[1].inputs[0].dtype == "float32"
    assert moves_only(found[1])


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"Layers": ["a", "b"]}'])
def test_what_is_no_inspectors_json(text: str) -> None:
    with pytest.raises(InputError):
        layers_of_inspector(text)


def test_kernels_that_only_move_data() -> None:
    assert kernel("__myl_ReshTranReshMove_myl0_7").operators == ("Resh", "Tran", "Resh", "Move")
    assert moves_only(kernel("__myl_ReshTranReshMove_myl0_7"))
    assert not moves_only(kernel("__myl_AddReshTran_myl0_7"))
    assert not moves_only(kernel("node_MatMul_1_myl0_3", kind="gemm"))


@pytest.mark.parametrize(
    ("name", "nodes", "kind", "alone"),
    [
        ("__myl_ReshGathResh_myl0_3", ("x.selected", "add"), "kgen", True),
        ("__myl_CastMulAddGath_myl0_3", ("x.selected", "norm"), "kgen", False),
        ("x.selected_U1_myl0_5", ("x.selected",), "gemm", True),
        ("__myl_MoveReplConc_myl0_5", ("x.run.2", "x.selected"), "kgen", True),
        ("__myl_ReshTran_myl0_5", ("transpose",), "kgen", False),
    ],
)
def test_kernels_that_only_select(
    name: str, nodes: tuple[str, ...], kind: str, alone: bool
) -> None:
    assert selects_only(kernel(name, *nodes, kind=kind)) is alone


def test_names_of_selections() -> None:
    names = ("a.selected", "a.run", "a.run.12", "a.selected.1", "a.selected.cast", "selected")
    assert [is_selection(name) for name in names] == [True, True, True, True, False, False]


def test_a_clean_engine_has_no_findings() -> None:
    layers = [attention("softmax", 17, 17), kernel("__myl_AddMeanSub_myl0_2", "norm")]
    blocks = [Attention("softmax", 17, 17)]
    assert lint(layers, blocks, GraphFacts(("norm",))) == []
    assert summary(layers, blocks) == {
        "kernels": 2,
        "blocks": 1,
        "fused_attentions": 1,
        "data_movement": 0,
        "selections_alone": 0,
    }
    assert lint([], blocks, NO_FACTS) == []


def test_each_rule_finds_what_it_is_for() -> None:
    layers = [
        attention("s1", 17, 17),
        kernel("__myl_MaxrSubExpSumDiv_myl0_2", "s2"),
        kernel("__myl_ReshCastMove_myl0_3", "a"),
        kernel("__myl_ReshGath_myl0_4", "a.selected"),
        kernel("wide_myl0_5", "m", kind="gemm", dtype="float32"),
    ]
    blocks = [Attention("s1", 17, 17), Attention("s2", 17, 17)]
    found = {f.rule: f for f in lint(layers, blocks, GraphFacts(("n1", "a")))}
    assert found["attention-not-fused"].names == ("block 2",)
    assert "compare with the dense engine" in found["attention-not-fused"].message
    assert found["selection-alone"].names == ("__myl_ReshGath_myl0_4",)
    assert found["data-movement"].names == ("__myl_ReshCastMove_myl0_3",)
    assert found["data-movement"].message.endswith("of which cast: 1")
    assert found["float32-island"].names == ("wide_myl0_5",)
    assert found["layer-norm-missing"].names == ("n1",)


def test_what_reads_the_images_is_not_between_kernels() -> None:
    layers = [kernel("__myl_CastReplConc_myl0_1", "cast")]
    assert [f.rule for f in lint(layers, [], NO_FACTS)] == ["data-movement"]
    assert lint(layers, [], GraphFacts(ends=("t",))) == []


def test_tokens_of_fused_and_unfused_attention() -> None:
    scores = Tensor("p", (-1, 3, 5, 10), "float32")
    unfused = EngineLayer("__myl_MaxrSubExpSumDiv_myl0_2", "kgen", ("s2",), (), (), (scores,))
    blocks = [Attention("s1", 10, 17), Attention("s2", 5, 10)]
    assert engine_tokens([unfused, attention("s1", 10, 17)], blocks) == blocks
    assert engine_tokens([unfused], blocks) is None
    assert engine_tokens([], []) is None


def test_tokens_are_compared_with_the_schedule() -> None:
    check_tokens("m.onnx", [10, 5], [10, 5], "sched.json")
    with pytest.raises(GateError, match=r"m\.onnx: block 2 computes 5 tokens, s\.json says 6"):
        check_tokens("m.onnx", [10, 5], [10, 6], "s.json")
    with pytest.raises(InputError, match=r"s\.json: is for a model of 3 blocks, m\.onnx has 2"):
        check_tokens("m.onnx", [10, 5], [10, 6, 1], "s.json")


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 8 bytes)", MissingError, "not enough mem"),
        ("Could not find any implementation for node {Foo}", MissingError, "set --workspace-gb"),
        (
            "Tactic Selection: no tactics to implement the operation within workspace",
            MissingError,
            "not enough memory",
        ),
        ("std::bad_alloc", MissingError, "lower --max-batch"),
        ("CUDA initialization failure with error: cudaError 35", MissingError, "needs a GPU"),
        (
            "IBuilder::build: Error Code 4: API Usage Error (odd. In validate at /_src/a.cpp:1)",
            InputError,
            "the builder refused it: API Usage Error (odd.",
        ),
        ("", InputError, "the builder refused it: no reason given"),
    ],
)
def test_what_a_builders_log_means(line: str, kind: type[Exception], words: str) -> None:
    error = explain([line], "m.onnx", 2.0)
    assert type(error) is kind
    assert str(error).startswith("m.onnx: ")
    assert words in str(error)


def test_signals_have_words() -> None:
    assert "ran out of memory" in str(killed("m.onnx", 9))
    assert "crashed (signal 11)" in str(killed("m.onnx", 11))


def test_progress_of_phases_within_phases_never_falls() -> None:
    phases, seen = Phases(), []

    def note() -> None:
        seen.append(phases.state()[1])

    phases.start("all", None, 2)
    phases.start("first", "all", 4)
    for step in range(4):
        phases.step("first", step)
        note()
    phases.finish("first")
    phases.step("all", 0)
    note()
    phases.start("second", "all", 1)
    note()
    phases.finish("second")
    phases.finish("all")
    note()
    assert seen == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 1.0]
