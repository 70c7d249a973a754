"""An ONNX file as a TensorRT network, and what that network says of its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.engine.protocol import TensorInfo
from slimdeploy.errors import GraphError, InputError


@dataclass(frozen=True)
class Network:
    """A parsed network; `builder` and `parser` own memory that it needs."""

    network: Any
    builder: Any
    parser: Any


@dataclass(frozen=True)
class Attention:
    """One block's attention as the network has it.

    Attributes:
        node: the softmax (or attention) layer's name, which is its ONNX node's.
        queries, keys: tokens on either side of the scores.
    """

    node: str
    queries: int
    keys: int


def parse(trt: Any, logger: Any, path: Path) -> Network:
    """Read an ONNX file, with weights beside it, as a strongly typed network.

    Raises:
        GraphError: if an operator is not supported; the node and the reason are named.
        InputError: if it is no readable model, or a file of weights is missing.
    """
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise _refusal(path, parser)
    return Network(network, builder, parser)


def _refusal(path: Path, parser: Any) -> Exception:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return InputError(f"{path}: TensorRT cannot read this model; export it again")
    first = errors[0]
    operator, node = first.node_operator(), first.node_name()
    reason = first.desc().strip().splitlines()[0][:200]
    if not operator:
        return InputError(f"{path}: TensorRT cannot read this model: {reason}; export it again")
    more = f" ({len(errors) - 1} more nodes)" * (len(errors) > 1)
    return GraphError(
        f"{path}: node '{node}' ({operator}): TensorRT has no such operator here: {reason}{more}; "
        "export with another opset, or find the block with export --prefix-blocks"
    )


def tensors(trt: Any, network: Any) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """The network's inputs and outputs; a dimension that varies is None."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return tuple(_info(trt, x) for x in inputs), tuple(_info(trt, x) for x in outputs)


def _info(trt: Any, tensor: Any) -> TensorInfo:
    shape = tuple(None if size < 0 else int(size) for size in tensor.shape)
    return TensorInfo(tensor.name, shape, dtype_name(trt, tensor.dtype))


def dtype_name(trt: Any, dtype: Any) -> str:
    """numpy's name of a TensorRT type; bfloat16 and 8-bit floats, which numpy lacks, by theirs."""
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8e4m3fn"}
    name = str(dtype.name)
    return names.get(name, name.lower())


def attentions(trt: Any, network: Any) -> list[Attention]:
    """Each block's token counts, from the shapes of its attention scores.

    A softmax over fewer than three axes is no attention. Sizes that vary are -1.
    """
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.SOFTMAX:
            shape = tuple(layer.get_output(0).shape)
            if len(shape) >= 3:
                found.append(Attention(layer.name, int(shape[-2]), int(shape[-1])))
        elif layer.type in _attention_kinds(trt):
            query, key = (tuple(layer.get_input(i).shape) for i in (0, 1))
            node = layer.name.removesuffix("_AttentionInput")
            found.append(Attention(node, int(query[-2]), int(key[-2])))
    return found


def _attention_kinds(trt: Any) -> list[Any]:
    """The layer type of ONNX's Attention operator, in the versions that have one."""
    kinds = ("ATTENTION_INPUT",)
    return [getattr(trt.LayerType, name) for name in kinds if hasattr(trt.LayerType, name)]
