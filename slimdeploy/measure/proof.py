"""Compare a slim file with the masked dense graph, on images of any kind, in small batches.

Three sessions run side by side: the reference, the slim file as it is, and the slim graph with its
residual streams as further outputs. The file as it is gives the verdict on the outputs, since a
runtime fuses fewer nodes of a graph that it has to look into.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from slimdeploy.engine import Engine, open_engine
from slimdeploy.errors import GateError, GraphError
from slimdeploy.files import TEMPORARY
from slimdeploy.graph.files.storage import save_model
from slimdeploy.graph.masked import masked_graph, masked_streams
from slimdeploy.graph.probes import Probe, with_streams
from slimdeploy.graph.tokens.keep import token_order
from slimdeploy.measure.block_parity import Array, BlockParity, Point, Spot, StreamParity
from slimdeploy.measure.feeding import infer_all
from slimdeploy.measure.parity import Parity, compare_outputs

_MEMORY = 1 << 28
_LARGEST_BATCH = 16


@dataclass(frozen=True)
class Proof:
    """What a comparison found: per output, and per stream in the order of computation."""

    images: int
    outputs: dict[str, Parity]
    blocks: list[StreamParity]

    @property
    def passed(self) -> bool:
        """Whether nothing differs by more than the tolerance."""
        return all(x.passed for x in self.outputs.values()) and all(x.passed for x in self.blocks)


@dataclass(frozen=True)
class Pair:
    """A slim file and what it is judged by.

    Attributes:
        slim: the file.
        reference: the dense graph with the dropped tokens masked, giving its streams too.
        probed: the slim graph, giving its streams too; None if no stream is compared.
        outputs: names of the outputs that both have.
        spots: the streams to compare.
        remarks: a line for each block of which a stream cannot be compared.
    """

    slim: Path
    reference: onnx.ModelProto
    probed: onnx.ModelProto | None
    outputs: list[str]
    spots: list[Spot]
    remarks: list[str]

    @property
    def batch(self) -> int:
        """How many images at a time keep the streams of both graphs within 256 MB."""
        known = {value.name: value.type.tensor_type.shape for value in self.reference.graph.output}
        shapes = [known[spot.dense] for spot in self.spots]
        elements = sum(int(np.prod([dim.dim_value or 1 for dim in s.dim])) for s in shapes)
        return max(1, min(_LARGEST_BATCH, _MEMORY // (8 * elements + 1)))


def pair(
    dense: onnx.ModelProto,
    slim: onnx.ModelProto,
    path: Path,
    keep: Sequence[Sequence[int]] | None,
    *,
    pool_kept: bool = False,
    per_block: bool = True,
) -> Pair:
    """Make ready to compare `slim`, which lies at `path`, with `dense`.

    Args:
        keep: what each block keeps. None: the slim graph computes what the dense one does, and of
            its streams those are compared that hold every token.
        pool_kept: the head pools over the kept tokens.
        per_block: compare the streams of all blocks too.

    Raises:
        InputError: if `keep` does not fit the dense graph.
        GraphError: as `masked_graph`.
        GateError: if no block is found in the slim graph, or the two have neither an output nor a
            stream in common.
    """
    given = {value.name for value in dense.graph.output}
    outputs = [value.name for value in slim.graph.output if value.name in given]
    if outputs and not per_block:
        masked = dense if keep is None else masked_graph(dense, keep, pool_kept=pool_kept)
        return Pair(path, masked, None, outputs, [], [])
    if keep is None:
        reference, seen = with_streams(dense)
    else:
        reference, seen = masked_streams(dense, keep, pool_kept=pool_kept)
    probed, found = _probed(slim)
    spots, remarks = _spots(seen, found, keep, token_order(slim, keep or [], seen[0].keys))
    if not outputs and not spots:
        raise GateError(f"it has none of the outputs {sorted(given)} and no comparable block")
    return Pair(path, reference, probed, outputs, spots, remarks)


def _probed(slim: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Probe]]:
    try:
        return with_streams(slim)
    except GraphError as error:
        raise GateError(str(error)) from error


def _spots(
    dense: Sequence[Probe],
    slim: Sequence[Probe],
    keep: Sequence[Sequence[int]] | None,
    order: Sequence[int],
) -> tuple[list[Spot], list[str]]:
    """Which streams belong together; a slim graph that was cut has the first blocks only."""
    spots: list[Spot] = []
    remarks: list[str] = []
    points: tuple[Point, ...] = ("attention", "output")
    for index, (one, two) in enumerate(zip(dense, slim, strict=False)):
        kept = set(order if keep is None else keep[index])
        ids = tuple(i for i in order if i in kept)
        if two.queries != len(ids):
            remarks.append(
                f"block {index + 1} was not compared: it holds {two.queries} tokens, not {len(ids)}"
            )
            continue
        for point in points:
            a, b = getattr(one, point), getattr(two, point)
            if a and b:
                spots.append(Spot(index + 1, point, a, b, one.axis, ids))
            else:  # only an MLP's sum can be missing
                remarks.append(f"block {index + 1}: no stream to compare was found behind it")
    return spots, remarks


def prove(pair: Pair, batches: Iterable[Array], tolerance: float, threads: int | None) -> Proof:
    """Run both sides on all images and compare what they compute.

    Args:
        batches: images as the dense graph takes them, float32, [n, ...].
        tolerance: the largest difference allowed, as a share of the scale of each tensor.
        threads: CPU threads within an operator; None takes all.

    Raises:
        InputError: if a model cannot be run, or takes other images than the dense one.
        GateError: if an output or a stream has another shape than its reference.
    """
    blocks, parts, images = BlockParity(pair.spots), dict[str, Parity](), 0
    with ExitStack() as stack:
        reference = stack.enter_context(session(pair.reference, threads))
        shipped = stack.enter_context(open_engine(pair.slim, threads=threads))
        probed = stack.enter_context(session(pair.probed, threads)) if pair.probed else shipped
        for batch in batches:
            expected = infer_all(reference, batch)
            if pair.spots:
                blocks.add(len(batch), expected, infer_all(probed, batch))
            result = infer_all(shipped, batch)
            for name in pair.outputs:
                parity = _compare(name, expected[name], result[name], tolerance)
                parts[name] = merged(parts[name], parity) if name in parts else parity
            images += len(batch)
    return Proof(images, parts, blocks.results(tolerance))


@contextmanager
def session(model: onnx.ModelProto, threads: int | None) -> Iterator[Engine]:
    """Run a model that is no file yet; through one, for it may be larger than a message."""
    with TemporaryDirectory(prefix=TEMPORARY) as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        with open_engine(path, threads=threads) as engine:
            yield engine


def _compare(name: str, reference: Array, result: Array, tolerance: float) -> Parity:
    if reference.shape != result.shape:
        raise GateError(
            f"output '{name}' has shape {list(result.shape)}, the reference {list(reference.shape)}"
        )
    rows = (len(reference), -1)
    return compare_outputs(reference.reshape(rows), result.reshape(rows), tolerance)


def merged(one: Parity, two: Parity) -> Parity:
    """The parity of both sets of rows together."""
    rows = one.rows + two.rows
    if not (one.finite and two.finite):
        return replace(two if one.finite else one, rows=rows)
    max_abs, scale = max(one.max_abs, two.max_abs), max(one.scale, two.scale)
    zero = 0.0 if max_abs == 0 else float("inf")
    agreed = one.top1_agreement * one.rows + two.top1_agreement * two.rows
    return replace(
        one,
        rows=rows,
        max_abs=max_abs,
        scale=scale,
        relative=max_abs / scale if scale else zero,
        cosine_min=min(one.cosine_min, two.cosine_min),
        top1_agreement=agreed / rows,
        passed=max_abs <= one.tolerance * scale,
    )
