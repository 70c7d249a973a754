"""Operators, attributes and opsets, and what a vision transformer never holds."""

from __future__ import annotations

from random import Random

import numpy as np
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.graph.damage.common import Model, behind, damage, inner, weights


@damage
def other_operator(model: Model, random: Random) -> Model:
    names = ["Relu", "Softmax", "TopK", "NonZero", "Identity", "Odd", "", "Scan", "Split", "Concat"]
    names += ["Reshape", "Gather", "Transpose", "Slice", "MatMul", "LayerNormalization", "Einsum"]
    random.choice(model.graph.node).op_type = random.choice(names)
    return model


@damage
def other_domain(model: Model, random: Random) -> Model:
    node = random.choice(model.graph.node)
    node.domain = random.choice(("com.microsoft", "ai.onnx.ml", "odd", "a::b", "ai.onnx"))
    if random.random() < 0.5:
        model.opset_import.append(helper.make_opsetid(node.domain, 1))
    return model


@damage
def other_opset(model: Model, random: Random) -> Model:
    model.opset_import[0].version = random.choice((-1, 0, 1, 6, 12, 13, 17, 27, 99, 1 << 40))
    return model


@damage
def odd_opsets(model: Model, random: Random) -> Model:
    if random.random() < 0.5:
        del model.opset_import[:]
    else:
        model.opset_import.append(helper.make_opsetid(random.choice(("", "ai.onnx", "x")), 13))
    return model


@damage
def odd_ir_version(model: Model, random: Random) -> Model:
    model.ir_version = random.choice((0, 1, 3, 99, 1 << 40))
    return model


@damage
def other_attribute(model: Model, random: Random) -> Model:
    """Change a number of an attribute."""
    owners = [a for node in model.graph.node for a in node.attribute if a.ints or a.HasField("i")]
    if not owners:
        return model
    attribute = random.choice(owners)
    number = random.choice((-9, -2, -1, 0, 1, 2, 3, 9, 1 << 40))
    if attribute.ints:
        attribute.ints[random.randrange(len(attribute.ints))] = number
    else:
        attribute.i = number
    return model


@damage
def attribute_type(model: Model, random: Random) -> Model:
    owners = [a for node in model.graph.node for a in node.attribute]
    if not owners:
        return model
    attribute = random.choice(owners)
    attribute.type = random.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14))
    return model


@damage
def odd_attribute(model: Model, random: Random) -> Model:
    node = random.choice(model.graph.node)
    odd = AttributeProto(name=random.choice(("axis", "odd", "perm", "keepdims", "to")))
    odd.type = random.choice((AttributeProto.TENSORS, AttributeProto.STRING, AttributeProto.FLOAT))
    odd.s, odd.f = b"\xff\xfe", 0.5
    if random.random() < 0.3:
        odd.ref_attr_name = "outer"
    node.attribute.append(odd)
    return model


@damage
def lost_attributes(model: Model, random: Random) -> Model:
    owners = [node for node in model.graph.node if node.attribute]
    if owners:
        del random.choice(owners).attribute[:]
    return model


@damage
def subgraph(model: Model, random: Random) -> Model:
    """Put an If with two branches behind a tensor."""
    name = random.choice(inner(model))
    info = [helper.make_empty_tensor_value_info("branch")]
    branches = [
        helper.make_graph([helper.make_node("Identity", [name], ["branch"])], f"b{i}", [], info)
        for i in range(2)
    ]
    flag = numpy_helper.from_array(np.asarray(True), "flag")
    model.graph.initializer.append(flag)
    node = helper.make_node(
        "If", ["flag"], ["chosen"], then_branch=branches[0], else_branch=branches[1]
    )
    return behind(model, name, node, "chosen")


@damage
def deep_subgraphs(model: Model, random: Random) -> Model:
    """Graphs within graphs, nearly as deep as a message may be."""
    info = [helper.make_empty_tensor_value_info("r")]
    body = helper.make_graph([helper.make_node("Identity", ["r0"], ["r"])], "g", [], info)
    for _ in range(random.choice((3, 15, 20))):
        node = helper.make_node("Loop", ["n", "c"], ["r"], body=body)
        body = helper.make_graph([node], "g", [], info)
    model.graph.node.append(helper.make_node("Loop", ["n", "c"], ["deep"], body=body))
    return model


@damage
def sparse_initializer(model: Model, random: Random) -> Model:
    tensor = random.choice(weights(model))
    values = numpy_helper.from_array(np.ones(1, np.float32), tensor.name)
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    sparse = helper.make_sparse_tensor(values, indices, list(tensor.dims))
    model.graph.initializer.remove(tensor)
    model.graph.sparse_initializer.append(sparse)
    return model


@damage
def recursive_function(model: Model, random: Random) -> Model:
    node = random.choice(model.graph.node)
    body = [helper.make_node("Again", ["a"], ["b"], domain="odd")]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("odd", 1)]
    model.functions.append(helper.make_function("odd", "Again", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("odd", 1))
    node.op_type, node.domain = "Again", "odd"
    return model


@damage
def escaping_weight(model: Model, random: Random) -> Model:
    """A weight that says it lies in a file, in a model that was not read from one."""
    tensor = random.choice(weights(model))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    place = random.choice(("../../etc/passwd", "/etc/passwd", "weights.bin", ""))
    tensor.external_data.add(key="location", value=place)
    return model


@damage
def duplicated_norm(model: Model, random: Random) -> Model:
    """Two norms in a row, or one that two blocks share."""
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    if len(norms) < 2:
        return model
    one, two = random.sample(norms, 2)
    if random.random() < 0.5:
        two.input[0] = one.output[0]
    else:
        two.input[1:] = one.input[1:]
    return model
