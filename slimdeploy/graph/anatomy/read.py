"""All parts of a dense graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slimdeploy.graph.anatomy.head import Head, read_head
from slimdeploy.graph.anatomy.origin import Image, origin_of_tokens
from slimdeploy.graph.anatomy.prefix import entering_stream
from slimdeploy.graph.anatomy.sizes import classes, heads, mlp_width
from slimdeploy.graph.tokens.blocks import Block, dense_tokens, find_blocks, token_axes
from slimdeploy.graph.work import Work, is_constant, label


@dataclass(frozen=True)
class Table:
    """A constant that runs along the tokens: position embeddings, biases, rotary tables, masks."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    node: str


@dataclass(frozen=True)
class Anatomy:
    """A dense graph's parts; sizes in tokens, pixels and features.

    Attributes:
        blocks: the attention blocks in order.
        tokens: ids of the dense stream: `prefix` of them, then the patches row by row.
        image: the input that holds images.
        grid: patches down and across.
        width: features of the stream; `heads` of the first block.
        mlp_width: hidden features of a plain MLP that has as many weights as this model's.
        num_classes: size of the logits, 0 if the output is no classifier's.
        tables: constants that run along the tokens.
        misses: attention that is no block, and why.
    """

    blocks: tuple[Block, ...]
    tokens: int
    prefix: int
    image: Image
    grid: tuple[int, int]
    width: int
    heads: int
    mlp_width: int
    num_classes: int
    head: Head
    tables: tuple[Table, ...]
    misses: tuple[str, ...]


def read_anatomy(work: Work) -> Anatomy:
    """Take a prepared graph apart.

    Raises:
        GraphError: if it is no plain vision transformer; the message names the node and why.
    """
    blocks, misses = find_blocks(work)
    tokens = dense_tokens(blocks)
    stream = entering_stream(work, blocks[0])
    prefix, grid, image = origin_of_tokens(work, stream, blocks[0].axis)
    return Anatomy(
        blocks=tuple(blocks),
        tokens=tokens,
        prefix=prefix,
        image=image,
        grid=grid,
        width=work.facts.shape(stream.name)[-1],
        heads=heads(work, blocks[0]),
        mlp_width=mlp_width(work, blocks, stream),
        num_classes=classes(work),
        head=read_head(work, blocks, tokens, prefix),
        tables=tuple(_tables(work, blocks)),
        misses=tuple(misses),
    )


def _is_long(shape: tuple[int, ...], axes: set[int]) -> bool:
    """Whether a constant has a number of its own for every token."""
    return any(shape[axis] > 1 for axis in axes)


def _tables(work: Work, blocks: Sequence[Block]) -> list[Table]:
    axes = token_axes(work, list(blocks))
    return [
        Table(tensor.name, tuple(tensor.shape), tuple(sorted(axes[tensor.name])), label(node))
        for node in work.graph.nodes
        for tensor in node.inputs
        if is_constant(tensor) and _is_long(tuple(tensor.shape), axes.get(tensor.name, set()))
    ]
