"""Options on the graph's outer shape: batch, layout, forbidden operators, prefixes for probing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from slimdeploy.errors import GateError, InputError
from slimdeploy.graph import GraphOptions, check_graph, dense_graph, lossless_graph, slim_graph
from slimdeploy.graph.anatomy.prefix import entering_stream
from slimdeploy.graph.options import Select
from slimdeploy.graph.passes import Pass, run
from slimdeploy.graph.passes.end_at import EndAt
from slimdeploy.graph.passes.fix_batch import FixBatch
from slimdeploy.graph.passes.input_layout import ChannelsLast
from slimdeploy.graph.tokens.blocks import find_blocks
from slimdeploy.graph.tokens.keep import token_order
from slimdeploy.graph.work import Work
from tests.graph.exports import DEPTH, EXPORTERS, build, export
from tests.graph.reference import Floats, compact, random_keep
from tests.graph.test_slim_exports import TOLERANCE, error, images
from tests.graph.text import lines, model
from tests.graph.vit_text import TOKENS, vit
from tests.graph.vit_text import compact as compact_text

KEEP = random_keep(1, DEPTH, 17, [0], [0])
EXPORTED = ["dynamo18", "dynamo23", "script17-fused"]


def after(dense: onnx.ModelProto, step: Pass) -> Work:
    work = Work.of(dense)
    run([step], work)
    return work


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]


def evaluate(graph: onnx.ModelProto, image: Floats) -> Floats:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
    result: Floats = session.run(None, {"image": image})[0]
    return result


@pytest.mark.parametrize(("name", "value"), [("select", "scatter"), ("input_layout", "chwn")])
def test_a_choice_that_is_none(name: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"--{name.replace('_', '-')} {value}: is none of "):
        GraphOptions(**{name: value})  # type: ignore[arg-type]


# Forbidden operators


def test_a_forbidden_operator_that_is_left_fails_the_gate() -> None:
    options = GraphOptions(forbid_ops=("Gather", "TopK", "Softmax"))
    message = (
        r"^vit.onnx: forbidden operators are left: 5 Gather \(the first, 'h0.selected', reads 'h0',"
        r" added to it\), 2 Softmax \(the first, 'p0', reads 'm0', of the dense graph\); "
        r"--select slice, slice-concat or one-hot writes no Gather$"
    )
    with pytest.raises(GateError, match=message):
        slim_graph(vit(), [[0, 2, 3], [0, 2]], options, source="vit.onnx")


@pytest.mark.parametrize("make", [dense_graph, lossless_graph])
def test_the_gate_stands_before_every_graph(make: Callable[..., object]) -> None:
    with pytest.raises(GateError, match=r"2 LayerNormalization \(the first, 'h0', reads 'x0', of"):
        make(vit(), GraphOptions(forbid_ops=("LayerNormalization",)))


@pytest.mark.parametrize(
    ("select", "forbidden", "passes"),
    [
        ("slice", ("Gather", "Concat"), True),
        ("slice-concat", ("Gather",), True),
        ("one-hot", ("Gather", "Slice", "Concat"), True),
        ("slice", ("Slice",), False),
        ("slice-concat", ("Concat",), False),
        ("one-hot", ("MatMul",), False),
    ],
)
def test_what_each_form_does_without(
    select: Select, forbidden: tuple[str, ...], passes: bool
) -> None:
    options = GraphOptions(select=select, forbid_ops=forbidden)
    keep = [[0, 2, 3, 5], [0, 3]]
    if not passes:
        with pytest.raises(GateError):
            slim_graph(vit(), keep, options)
        return
    graph = slim_graph(vit(), keep, options).model
    assert not {node.op_type for node in graph.graph.node} & set(forbidden)
    x = np.random.default_rng(0).normal(size=(2, TOKENS, 4)).astype(np.float32)
    result = ReferenceEvaluator(graph).run(None, {"x0": x})[0]
    np.testing.assert_allclose(result, compact_text(x, keep)[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gather", "did you mean Gather?"),
        ("Gathr", "did you mean Gather or GatherND"),
        ("Zzzz", "there is no such operator$"),
    ],
)
def test_an_unknown_operator_is_an_error(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=rf"--forbid-op {name}: .*{hint.replace('?', '.')}"):
        dense_graph(vit(), GraphOptions(forbid_ops=(name,)))


# Fixed batch


def test_fix_batch_gives_inputs_and_outputs_their_sizes() -> None:
    body = "n = Shape<end=1>(x) t = Concat<axis=0>(n, d) e = Expand(c, t) y = Add(x, e)"
    constants = {"d": [3], "c": np.ones((1, 3), np.float32)}
    graph = after(model("float[B,3] x => float[B,3] y", body, **constants), FixBatch(5)).export()
    assert dims(graph.graph.input[0]) == dims(graph.graph.output[0]) == [5, 3]


@pytest.mark.parametrize("exporter", EXPORTED)
def test_a_fixed_batch_folds_what_carried_it(exporter: str) -> None:
    dense = export("plain", exporter, True)
    graph = slim_graph(dense, KEEP, GraphOptions(fixed_batch=3)).model
    assert dims(graph.graph.input[0]) == [3, 3, 64, 64]
    assert dims(graph.graph.output[0]) == [3, 7]
    assert not {"Shape", "Expand"} & {node.op_type for node in graph.graph.node}
    assert all(isinstance(d, int) and d > 0 for v in graph.graph.value_info for d in dims(v))
    expected = compact(build("plain", EXPORTERS[exporter][2]), images(3), KEEP)
    assert error(evaluate(graph, images(3)), expected) <= TOLERANCE


def test_a_batch_that_is_fixed_already() -> None:
    static = export("plain", "dynamo18", False)
    assert dims(dense_graph(static, GraphOptions(fixed_batch=1)).model.graph.input[0])[0] == 1
    with pytest.raises(InputError, match=r"--fixed-batch 4: input 'image' has the fixed batch 1"):
        dense_graph(static, GraphOptions(fixed_batch=4))


# Input layout


def test_channels_last_puts_a_transpose_before_the_convolution() -> None:
    dense = model(
        "float[B,3,8,8] x => float[B,2,2,2] y",
        "y = Conv<strides=[4, 4]>(x, w)",
        w=np.ones((2, 3, 4, 4), np.float32),
    )
    work = after(dense, ChannelsLast())
    assert lines(work) == ["x.nchw = Transpose(x)", "y = Conv(x.nchw, w)"]
    assert dims(work.export().graph.input[0]) == ["B", 8, 8, 3]


@pytest.mark.parametrize(
    ("perm", "output", "expected"),
    [
        ([0, 2, 3, 1], "B,8,6,3", ["y = Relu(x)"]),
        ([0, 1, 3, 2], "B,3,6,8", ["t = Transpose(x)", "y = Relu(t)"]),
    ],
)
def test_a_transpose_that_follows_is_joined(
    perm: list[int], output: str, expected: list[str]
) -> None:
    body = f"t = Transpose<perm={perm}>(x) y = Relu(t)"
    dense = model(f"float[B,3,8,6] x => float[{output}] y", body)
    work = after(dense, ChannelsLast())
    assert lines(work) == expected
    image = np.random.default_rng(0).normal(size=(2, 3, 8, 6)).astype(np.float32)
    wanted = ReferenceEvaluator(dense).run(None, {"x": image})[0]
    last = image.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(
        ReferenceEvaluator(work.export()).run(None, {"x": last})[0], wanted
    )


@pytest.mark.parametrize("exporter", EXPORTED)
def test_images_with_their_channels_last(exporter: str) -> None:
    options = GraphOptions(input_layout="nhwc", fixed_batch=2)
    graph = slim_graph(export("plain", exporter, True), KEEP, options).model
    assert dims(graph.graph.input[0]) == [2, 64, 64, 3]
    assert graph.graph.input[0].name == "image"
    expected = compact(build("plain", EXPORTERS[exporter][2]), images(2), KEEP)
    last = np.ascontiguousarray(images(2).transpose(0, 2, 3, 1))
    assert error(evaluate(graph, last), expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("shape", "message"),
    [("B,6,4", "no image input"), ("B,8,8,3", r"input 'x' is \[B, H, W, C\] already")],
)
def test_what_is_no_image_with_its_channels_first(shape: str, message: str) -> None:
    with pytest.raises(InputError, match=f"--input-layout nhwc: .*{message}"):
        after(model(f"float[{shape}] x => float[{shape}] y", "y = Relu(x)"), ChannelsLast())


# Prefixes


def test_end_at_drops_what_only_the_old_outputs_needed() -> None:
    body = "stream = Relu(x) h = Tanh(stream) y = MatMul(h, w)"
    dense = model("float[B,3] x => float[B,2] y", body, w=np.ones((3, 2), np.float32))
    graph = after(dense, EndAt("h")).export()
    assert lines(graph) == ["stream.1 = Relu(x)", "stream = Tanh(stream.1)"]
    assert [(v.name, dims(v)) for v in graph.graph.output] == [("stream", ["B", 3])]
    assert not graph.graph.initializer


def stream_of(count: int, image: Floats, fused: bool) -> Floats:
    """The residual stream behind `count` blocks of the plain model, kept tokens only."""
    timm_model = build("plain", fused)
    blocks, head = timm_model.blocks, timm_model.forward_head
    timm_model.blocks, timm_model.forward_head = blocks[:count], lambda stream: stream
    norm, timm_model.norm = timm_model.norm, torch.nn.Identity()
    try:
        return compact(timm_model, image, KEEP[:count])
    finally:
        timm_model.blocks, timm_model.forward_head, timm_model.norm = blocks, head, norm


@pytest.mark.parametrize("exporter", EXPORTED)
@pytest.mark.parametrize("count", range(1, DEPTH))
def test_a_prefix_ends_with_the_stream_of_its_last_block(count: int, exporter: str) -> None:
    dense = export("plain", exporter, True)
    expected = stream_of(count, images(2), EXPORTERS[exporter][2])
    sizes = [17, *map(len, KEEP)]
    forms: tuple[Select, ...] = ("gather", "slice")
    for form in forms:
        slim = slim_graph(dense, KEEP, GraphOptions(select=form, prefix_blocks=count))
        assert slim.blocks == list(zip(sizes[1:], sizes, strict=False))[:count]
        assert check_graph(slim.model) == slim.blocks
        assert dims(slim.model.graph.output[0]) == ["batch", len(KEEP[count - 1]), 48]
        order = [i for i in token_order(slim.model, KEEP, 17) if i in KEEP[count - 1]]
        stream = evaluate(slim.model, images(2))
        in_order = stream[:, [order.index(i) for i in KEEP[count - 1]]]
        assert error(in_order, expected) <= TOLERANCE


def test_a_prefix_holds_no_weight_of_later_blocks() -> None:
    dense = export("plain", "script17-fused", True)
    sizes = [
        sum(t.ByteSize() for t in dense_graph(dense, options).model.graph.initializer)
        for options in (GraphOptions(prefix_blocks=1), GraphOptions(prefix_blocks=2))
    ]
    block = sum(p.numel() * 4 for p in build("plain", True).blocks[1].parameters())
    assert block <= sizes[1] - sizes[0] < 1.05 * block


def test_prefixes_of_dense_and_lossless_are_the_same() -> None:
    dense = export("plain", "dynamo18", True)
    options = GraphOptions(prefix_blocks=2)
    results = [dense_graph(dense, options), lossless_graph(dense, options)]
    assert [result.blocks for result in results] == [[(17, 17)] * 2] * 2
    first, second = (evaluate(result.model, images(2)) for result in results)
    np.testing.assert_array_equal(first, second)
    model_of = build("plain", False)
    with torch.no_grad():
        stream = model_of._pos_embed(model_of.patch_embed(torch.from_numpy(images(2))))
        for block in model_of.blocks[:2]:
            stream = block(stream)
    assert error(first, stream.numpy()) <= TOLERANCE


def test_the_stream_that_enters_a_block_with_attention_and_mlp_side_by_side() -> None:
    """Their sum comes first, so the operand beside the attention is the MLP, not the stream."""
    body = """
        h = LayerNormalization(x, g) t = Transpose<perm=[0, 2, 1]>(h) s = MatMul(h, t)
        p = Softmax(s) a = MatMul(p, h) m = MatMul(h, w) b = Add(a, m) y = Add(x, b)
    """
    constants = {"g": np.ones(4, np.float32), "w": np.ones((4, 4), np.float32)}
    work = Work.of(model("float[B,6,4] x => float[B,6,4] y", body, **constants))
    block = find_blocks(work)[0][0]
    assert block.stream.name == "b"
    assert entering_stream(work, block).name == "x"


@pytest.mark.parametrize("count", [DEPTH, DEPTH + 1])
def test_a_prefix_ends_before_the_last_block(count: int) -> None:
    message = f"--prefix-blocks {count}: the graph has {DEPTH} blocks; give fewer than that"
    for make in (dense_graph, lossless_graph):
        with pytest.raises(InputError, match=message):
            make(export("plain", "dynamo18", True), GraphOptions(prefix_blocks=count))
