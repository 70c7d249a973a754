"""Types, sizes and numbers that are not what the graph around them needs."""

from __future__ import annotations

from random import Random

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.graph.damage.common import Model, damage, replace, weights


@damage
def other_dtype(model: Model, random: Random) -> Model:
    tensor = random.choice(model.graph.initializer)
    values = numpy_helper.to_array(tensor)
    kind = random.choice((np.float16, np.float64, np.int64, np.int32, np.bool_, np.int8, np.str_))
    replace(tensor, values.astype(object).astype(str) if kind is np.str_ else values.astype(kind))
    return model


@damage
def lying_dtype(model: Model, random: Random) -> Model:
    random.choice(model.graph.initializer).data_type = random.choice([0, 2, 7, 8, 10, 16, 22, 99])
    return model


@damage
def lying_dims(model: Model, random: Random) -> Model:
    tensor = random.choice([t for t in model.graph.initializer if t.dims])
    size = random.choice((-1, 0, 1, 3, 5, 1 << 20, 1 << 40, 1 << 62))
    tensor.dims[random.randrange(len(tensor.dims))] = size
    return model


@damage
def other_rank(model: Model, random: Random) -> Model:
    tensor = random.choice(model.graph.initializer)
    values = numpy_helper.to_array(tensor)
    replace(tensor, random.choice((values.reshape(-1), values[None], values[..., None])))
    return model


@damage
def cut_weight(model: Model, random: Random) -> Model:
    tensor = random.choice([t for t in model.graph.initializer if t.dims])
    values = numpy_helper.to_array(tensor)
    keep = random.randrange(values.shape[0] + 1)
    replace(tensor, values[:keep])
    return model


@damage
def no_numbers(model: Model, random: Random) -> Model:
    tensor = random.choice(model.graph.initializer)
    for field in ("raw_data", "float_data", "int64_data"):
        tensor.ClearField(field)
    return model


@damage
def strange_numbers(model: Model, random: Random) -> Model:
    tensor = random.choice(weights(model))
    values = np.array(numpy_helper.to_array(tensor))
    values.reshape(-1)[random.randrange(values.size)] = random.choice((np.nan, np.inf, -np.inf))
    replace(tensor, values)
    return model


@damage
def strange_indices(model: Model, random: Random) -> Model:
    tensor = random.choice([t for t in model.graph.initializer if t.data_type == TensorProto.INT64])
    values = np.array(numpy_helper.to_array(tensor))
    number = random.choice((-(1 << 63), -7, -1, 0, 1, 2, 7, 1 << 20, 1 << 40, (1 << 63) - 1))
    values.reshape(-1)[:1] = number
    replace(tensor, values)
    return model


@damage
def strange_input_dims(model: Model, random: Random) -> Model:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dim = random.choice(dims)
    choices = (-1, 0, 1, 5, 1 << 20, 1 << 31, 1 << 40, 1 << 62)
    dim.dim_value = random.choice(choices)
    return model


@damage
def input_without(model: Model, random: Random) -> Model:
    model.graph.input[0].type.tensor_type.ClearField(random.choice(("shape", "elem_type")))
    return model


@damage
def other_input_rank(model: Model, random: Random) -> Model:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    if random.random() < 0.5:
        del dims[random.randrange(len(dims))]
    else:
        dims.add(dim_value=random.choice((1, 3)))
    return model


@damage
def other_input_type(model: Model, random: Random) -> Model:
    kind = random.choice((1, 2, 7, 8, 9, 10, 11, 99))
    model.graph.input[0].type.tensor_type.elem_type = kind
    return model


@damage
def sequence_input(model: Model, random: Random) -> Model:
    value = random.choice([model.graph.input[0], model.graph.output[0]])
    value.CopyFrom(helper.make_tensor_sequence_value_info(value.name, TensorProto.FLOAT, None))
    return model


@damage
def huge_constant(model: Model, random: Random) -> Model:
    """A small file that asks for terabytes."""
    size = random.choice((1 << 36, 1 << 40, 1 << 44))
    shape = numpy_helper.from_array(np.asarray([size, 4], np.int64), "huge.shape")
    model.graph.initializer.append(shape)
    nodes = [
        helper.make_node("ConstantOfShape", ["huge.shape"], ["huge"]),
        helper.make_node("Range", ["huge.start", "huge.end", "huge.step"], ["huge.range"]),
        helper.make_node("Expand", ["huge.one", "huge.shape"], ["huge.expanded"]),
        helper.make_node("Tile", ["huge.row", "huge.shape"], ["huge.tiled"]),
    ]
    for name, number in (("start", 0), ("end", size), ("step", 1)):
        tensor = numpy_helper.from_array(np.asarray(number, np.int64), f"huge.{name}")
        model.graph.initializer.append(tensor)
    for name, values in (("one", [[1.0]]), ("row", [[1.0]])):
        tensor = numpy_helper.from_array(np.asarray(values, np.float32), f"huge.{name}")
        model.graph.initializer.append(tensor)
    node = random.choice(nodes)
    total = helper.make_node("ReduceMax", [node.output[0]], ["huge.max"], keepdims=0)
    cast = helper.make_node("Cast", ["huge.max"], ["huge.float"], to=TensorProto.FLOAT)
    reader = random.choice([n for n in model.graph.node if n.op_type == "Add"])
    scaled = helper.make_node("Add", [reader.input[0], "huge.float"], ["huge.sum"])
    reader.input[0] = "huge.sum"
    for extra in (scaled, cast, total, node):
        model.graph.node.insert(0, extra)
    return model
