"""Bytes that are wrong, and names that are missing, doubled or out of order."""

from __future__ import annotations

from random import Random

from onnx import helper

from tests.graph.damage.common import Model, damage, inner


@damage
def truncated(model: Model, random: Random) -> Model:
    data = model.SerializeToString()
    return Model.FromString(data[: random.randrange(len(data))])


@damage
def flipped_bytes(model: Model, random: Random) -> Model:
    data = bytearray(model.SerializeToString())
    for _ in range(random.choice((1, 1, 2, 8))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return Model.FromString(bytes(data))


@damage
def flipped_structure(model: Model, random: Random) -> Model:
    """Flip bytes of the graph alone, where a flip is never only another weight."""
    stored = list(model.graph.initializer)
    del model.graph.initializer[:]
    model = flipped_bytes(model, random)
    model.graph.initializer.extend(stored)
    return model


@damage
def overwritten_bytes(model: Model, random: Random) -> Model:
    data = bytearray(model.SerializeToString())
    start = random.randrange(len(data))
    data[start : start + 8] = random.randbytes(8)
    return Model.FromString(bytes(data))


@damage
def cycle(model: Model, random: Random) -> Model:
    node = random.choice([n for n in model.graph.node if n.input])
    node.input[random.randrange(len(node.input))] = model.graph.node[-1].output[0]
    return model


@damage
def self_loop(model: Model, random: Random) -> Model:
    node = random.choice([n for n in model.graph.node if n.input])
    node.input[0] = node.output[0]
    return model


@damage
def missing_initializer(model: Model, random: Random) -> Model:
    del model.graph.initializer[random.randrange(len(model.graph.initializer))]
    return model


@damage
def missing_node(model: Model, random: Random) -> Model:
    del model.graph.node[random.randrange(len(model.graph.node))]
    return model


@damage
def rewired(model: Model, random: Random) -> Model:
    node = random.choice([n for n in model.graph.node if n.input])
    node.input[random.randrange(len(node.input))] = random.choice(inner(model))
    return model


@damage
def swapped_inputs(model: Model, random: Random) -> Model:
    node = random.choice([n for n in model.graph.node if len(n.input) > 1])
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return model


@damage
def duplicate_output(model: Model, random: Random) -> Model:
    one, two = random.sample(list(model.graph.node), 2)
    two.output[0] = one.output[0]
    return model


@damage
def duplicate_initializer(model: Model, random: Random) -> Model:
    model.graph.initializer.append(random.choice(model.graph.initializer))
    return model


@damage
def duplicate_node(model: Model, random: Random) -> Model:
    model.graph.node.append(random.choice(model.graph.node))
    return model


@damage
def emptied_names(model: Model, random: Random) -> Model:
    node = random.choice(model.graph.node)
    names = node.output if random.random() < 0.5 or not node.input else node.input
    names[random.randrange(len(names))] = ""
    return model


@damage
def nameless_initializer(model: Model, random: Random) -> Model:
    random.choice(model.graph.initializer).name = ""
    return model


@damage
def lost_inputs(model: Model, random: Random) -> Model:
    node = random.choice([n for n in model.graph.node if n.input])
    del node.input[random.randrange(len(node.input)) :]
    return model


@damage
def extra_inputs(model: Model, random: Random) -> Model:
    random.choice(model.graph.node).input.extend([random.choice(inner(model))] * 3)
    return model


@damage
def lost_outputs(model: Model, random: Random) -> Model:
    del random.choice(model.graph.node).output[:]
    return model


@damage
def no_graph_output(model: Model, random: Random) -> Model:
    del model.graph.output[:]
    return model


@damage
def no_graph_input(model: Model, random: Random) -> Model:
    del model.graph.input[:]
    return model


@damage
def output_is_input(model: Model, random: Random) -> Model:
    model.graph.output[0].CopyFrom(model.graph.input[0])
    return model


@damage
def output_is_weight(model: Model, random: Random) -> Model:
    tensor = random.choice(model.graph.initializer)
    info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
    model.graph.output.append(info)
    return model
