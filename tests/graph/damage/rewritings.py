"""The same model, written differently."""

from __future__ import annotations

from random import Random

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.graph.damage.common import Model, behind, inner, legal, weights, with_nodes


@legal
def renamed(model: Model, random: Random) -> Model:
    """Every inner tensor and node under a meaningless name."""
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    names: dict[str, str] = {}
    for tensor in model.graph.initializer:
        tensor.name = names.setdefault(tensor.name, f"{random.getrandbits(60):x}")
    for node in model.graph.node:
        node.name = random.choice(("", "same", f"{random.getrandbits(40):x}", "/a/b/ö", "x" * 300))
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                if name and name not in ends:
                    field[index] = names.setdefault(name, f"{random.getrandbits(60):x}")
    del model.graph.value_info[:]
    return model


@legal
def reordered(model: Model, random: Random) -> Model:
    """Another valid order of the nodes."""
    waiting = list(model.graph.node)
    made = {name for node in waiting for name in node.output}
    done: set[str] = set()
    ordered = []
    while waiting:
        ready = [n for n in waiting if all(i in done or i not in made for i in n.input)]
        node = random.choice(ready)
        waiting.remove(node)
        ordered.append(node)
        done.update(node.output)
    return with_nodes(model, ordered)


@legal
def identities(model: Model, random: Random) -> Model:
    """Chains of Identity behind several tensors, constants among them."""
    for number in range(4):
        names = [*inner(model), *(t.name for t in weights(model))]
        name, chain = random.choice(names), [f"id{number}.{i}" for i in range(3)]
        for source, target in zip([name, *chain], chain, strict=False):
            model = behind(model, source, helper.make_node("Identity", [source], [target]), target)
    return model


@legal
def constant_nodes(model: Model, random: Random) -> Model:
    """Some initialisers as `Constant` nodes."""
    for tensor in list(model.graph.initializer):
        if random.random() < 0.5:
            node = helper.make_node("Constant", [], [tensor.name], value=tensor)
            model.graph.initializer.remove(tensor)
            model.graph.node.insert(0, node)
    return model


@legal
def listed_initializers(model: Model, random: Random) -> Model:
    """Initialisers among the inputs, as files had it before 2019."""
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(info)
    return model


@legal
def typed_fields(model: Model, random: Random) -> Model:
    """Numbers in the field of their type instead of raw bytes."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.INT64):
            flat = values.ravel().tolist()
            tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, values.shape, flat))
    return model


@legal
def swapped_sums(model: Model, random: Random) -> Model:
    """The operands of some sums and products in the other order."""
    for node in model.graph.node:
        if node.op_type in ("Add", "Mul") and random.random() < 0.5:
            node.input[0], node.input[1] = node.input[1], node.input[0]
    return model


@legal
def separate_constants(model: Model, random: Random) -> Model:
    """Every use of a constant has its own copy."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for number, node in enumerate(model.graph.node):
        for index, name in enumerate(node.input):
            if name in stored:
                copy = model.graph.initializer.add()
                copy.CopyFrom(stored[name])
                node.input[index] = copy.name = f"own{number}.{index}"
    return model


@legal
def unused_parts(model: Model, random: Random) -> Model:
    """Nodes and weights that nothing reads."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    words = numpy_helper.from_array(np.asarray(["a", "b"], dtype=object), "words")
    model.graph.initializer.append(words)
    for number, name in enumerate(random.sample(inner(model), 3)):
        model.graph.node.append(helper.make_node("Relu", [name], [f"unused{number}"]))
    return model


@legal
def comments(model: Model, random: Random) -> Model:
    """Documentation and metadata wherever they may stand."""
    model.doc_string = model.graph.doc_string = "a\nb"
    model.metadata_props.add(key="k", value="v")
    for node in model.graph.node:
        node.doc_string = "doc"
        node.metadata_props.add(key="namespace", value="x/y")
    for tensor in model.graph.initializer:
        tensor.doc_string = "doc"
    return model


@legal
def named_domain(model: Model, random: Random) -> Model:
    """The default domain by its other name."""
    for node in model.graph.node:
        if random.random() < 0.5:
            node.domain = "ai.onnx"
    return model


@legal
def in_a_function(model: Model, random: Random) -> Model:
    """One operator behind a function of the model's own."""
    nodes = [n for n in model.graph.node if n.op_type in ("MatMul", "Add") and len(n.output) == 1]
    node = random.choice(nodes)
    body = [helper.make_node(node.op_type, ["a", "b"], ["c"])]
    opsets = [entry for entry in model.opset_import if not entry.domain]
    model.functions.append(helper.make_function("own", "Fun", ["a", "b"], ["c"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    node.op_type, node.domain = "Fun", "own"
    model.ir_version = max(model.ir_version, 8)
    return model


@legal
def scaled_weight(model: Model, random: Random) -> Model:
    """A weight that two nodes compute from constants."""
    tensor = random.choice([t for t in weights(model) if len(t.dims) == 2])
    name = tensor.name
    half = numpy_helper.from_array(numpy_helper.to_array(tensor).T.copy(), f"{name}.t")
    tensor.CopyFrom(half)
    model.graph.node.insert(0, helper.make_node("Transpose", [f"{name}.t"], [name], perm=[1, 0]))
    return model
