"""Where to look into a transformer: the tensors that mark its blocks, by their names in the file.

The file is read as it is. A folded copy serves to recognise the blocks; the names found are those
of the file itself, so what a probe shows is what the file computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx.inliner import inline_local_functions

from slimdeploy.errors import GraphError
from slimdeploy.graph.slimming import prepared
from slimdeploy.graph.tokens.blocks import Block, find_blocks
from slimdeploy.graph.work import Node, Work, is_constant

_SELECTIONS = ("Gather", "Slice", "Split", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast")
_SMALL = 4096


@dataclass(frozen=True)
class Probe:
    """What can be seen of one block.

    Attributes:
        anchor: output of its Softmax or Attention node.
        queries: number of tokens that it computes.
        keys: number of tokens that they attend to.
        attention: the residual stream after attention.
        output: the residual stream after the MLP, which the next block or the head reads; None
            where no Add of the stream and a computed tensor follows.
        axis: the token axis of both.
    """

    anchor: str
    queries: int
    keys: int
    attention: str
    output: str | None
    axis: int


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A private copy of `model` without local functions."""
    copy = onnx.ModelProto()
    copy.CopyFrom(inline_local_functions(model) if model.functions else model)
    for node in copy.graph.node:
        if node.domain == "ai.onnx":  # the default domain by its other name, which onnx confuses
            node.domain = ""
    return copy


def find_probes(model: onnx.ModelProto) -> list[Probe]:
    """The probes of every block of a model without local functions, in order.

    Raises:
        InputError: if the model's image size is dynamic or its opset too old.
        GraphError: if no block is found.
    """
    return probes_of(prepared(model), model)


def with_streams(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Probe]]:
    """A copy of `model` that gives the streams of its blocks too, and the probes naming them.

    Raises: as `find_probes`.
    """
    copy = inlined(model)
    work = prepared(copy)
    probes = probes_of(work, copy)
    add_outputs(copy, work, stream_names(probes))
    return copy, probes


def stream_names(probes: Iterable[Probe]) -> list[str]:
    """Names of all streams, in the order of computation."""
    streams = ((probe.attention, probe.output) for probe in probes)
    return [name for pair in streams for name in pair if name]


def probes_of(work: Work, model: onnx.ModelProto) -> list[Probe]:
    """As `find_probes`, where `work` is `prepared(model)`: what is left of it keeps its names."""
    names = {name for node in model.graph.node for name in node.output}
    return [_probe(work, block, names) for block in find_blocks(work)[0]]


def _probe(work: Work, block: Block, names: set[str]) -> Probe:
    output = _after_mlp(work, block)
    anchor = block.anchor.outputs[0].name
    for name in (anchor, block.stream.name):
        if name not in names:
            raise GraphError(f"tensor '{name}' marks a block, but the file holds none of that name")
    seen = output if output in names else None
    return Probe(anchor, block.queries, block.keys, block.stream.name, seen, block.axis)


def _after_mlp(work: Work, block: Block) -> str | None:
    """The first sum of the stream, perhaps of fewer tokens, and something computed."""
    nodes = list(work.graph.nodes)
    start = next(i for i, node in enumerate(nodes) if node is block.add)
    carried = {block.stream.name}
    for node in nodes[start + 1 :]:
        computed = [tensor.name for tensor in node.inputs if not is_constant(tensor)]
        if not carried.intersection(computed):
            continue
        if node.op == "Add" and len(computed) == 2 and not carried.issuperset(computed):
            return str(node.outputs[0].name)
        if carried.issuperset(computed) and _selects(node):
            carried.update(tensor.name for tensor in node.outputs)
    return None


def _selects(node: Node) -> bool:
    """Whether the outputs are elements of the inputs: a selection of tokens, or a new shape."""
    one_hot = node.op == "MatMul" and is_constant(node.inputs[0])
    return node.op in _SELECTIONS or node.op == "Concat" or one_hot


def token_count(probes: Sequence[Probe]) -> int:
    """How many tokens every block of a dense graph has.

    Raises:
        GraphError: if blocks differ in it.
    """
    tokens = probes[0].keys
    for number, probe in enumerate(probes, 1):
        if (probe.queries, probe.keys) != (tokens, tokens):
            raise GraphError(
                f"block {number} has {probe.queries} queries for {probe.keys} keys, not {tokens} "
                "for each: give the dense graph, in which all blocks have all tokens"
            )
    return tokens


def entering(model: onnx.ModelProto, probe: Probe) -> str:
    """The stream that enters a block: what its Add joins with the attention's result.

    Raises:
        GraphError: if no node computes the block's stream.
    """
    tainted = {probe.anchor}
    for node in model.graph.node:
        if probe.attention in node.output:
            names: list[str] = [name for name in node.input if name not in tainted]
            return names[0]
        if tainted.intersection(node.input):
            tainted.update(node.output)
    raise GraphError(f"the graph has no node that computes '{probe.attention}'")


def give_streams(model: onnx.ModelProto, names: Sequence[str], probes: Sequence[Probe]) -> None:
    """Let the graph give out the tensors `names`, of the type of the blocks' streams."""
    types = {value.name: value.type for value in model.graph.output}
    for name, probe in zip(names, probes, strict=True):
        if name not in types:
            value = onnx.ValueInfoProto(name=name, type=types[probe.attention])
            model.graph.output.append(value)


def tensor_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """The type of every tensor, with its shape where onnx can tell it, by name.

    Weights are declared, not copied, so this is cheap for a file of any size.
    """
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.graph.name = "types"
    light.graph.node.extend(model.graph.node)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    light.graph.input.extend(v for v in model.graph.input if v.name not in stored)
    for name, tensor in stored.items():
        value = onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        light.graph.input.append(value)
        if tensor.data_type == onnx.TensorProto.INT64 and 0 < len(tensor.raw_data) < _SMALL:
            light.graph.initializer.append(tensor)  # shapes, axes and bounds decide shapes
    inferred = onnx.shape_inference.infer_shapes(light)
    return {v.name: v.type for v in (*inferred.graph.input, *inferred.graph.value_info)}


def element_type(types: Mapping[str, onnx.TypeProto], name: str) -> int:
    """One tensor's element type.

    Raises:
        GraphError: if it is unknown.
    """
    if name not in types or not types[name].tensor_type.elem_type:
        raise GraphError(f"the element type of tensor '{name}' is unknown to onnx")
    return int(types[name].tensor_type.elem_type)


def add_outputs(model: onnx.ModelProto, work: Work, names: Iterable[str]) -> None:
    """Let the graph give these tensors too, after its own outputs.

    Their shapes are those that the file's own nodes lead to; `work`, whose tensors may be shaped
    otherwise, is asked only where onnx does not say.
    """
    types = tensor_types(model)
    given = {value.name for value in model.graph.output}
    for name in names:
        if name not in given:
            shape = [size if size >= 0 else None for size in work.facts.shape(name)]
            value = onnx.helper.make_tensor_value_info(name, element_type(types, name), shape)
            if types[name].tensor_type.HasField("shape"):
                value.type.CopyFrom(types[name])
            model.graph.output.append(value)
            given.add(name)
