"""What `slimdeploy inspect` says of an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import onnx

from slimdeploy.cli.common import load_onnx
from slimdeploy.cli.inspect.engine import record_lines
from slimdeploy.dynamic import PerImage
from slimdeploy.engine.building.record import build_record
from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph.anatomy import Anatomy, read_anatomy
from slimdeploy.graph.anatomy.geometry import geometry_of
from slimdeploy.graph.by_image import refusals
from slimdeploy.graph.options import GraphOptions
from slimdeploy.graph.outputs import keep_outputs
from slimdeploy.graph.slimming import prepared
from slimdeploy.graph.tokens.blocks import Block, find_blocks
from slimdeploy.manifest import manifest_path, verify_manifest
from slimdeploy.measure.macs import MacCount, count_macs
from slimdeploy.precision.state import precision_state


def graph_report(file: Path, outputs: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """A record for programs, and lines for a person.

    A graph that cannot be slimmed is described as far as it goes, with the reason.

    Raises:
        InputError: if the file is no ONNX model, or the manifest beside it is damaged.
        GateError: if it is not the file that this manifest describes.
    """
    model = load_onnx(file)
    manifest = verify_manifest(file) if manifest_path(file).is_file() else None
    keep_outputs(model, outputs)
    result: dict[str, Any] = {"file": str(file), "macs": None, "slimmable": False, "blocks": []}
    lines = [f"{file}:"]
    try:
        count = _counted(model)
        result |= {"macs": count.total // count.batch, "uncounted": count.uncounted}
        lines = [f"{file}: {_macs(count)}"]
        work = prepared(model)
        state = precision_state(work)
        result["precision"] = state.to_json()
        lines += [] if state.is_plain else [f"  precision     {state}"]
        blocks, misses = find_blocks(work)
        result |= {"blocks": _counts(blocks), "not_blocks": misses}
        lines += _block_lines(blocks, misses)
        anatomy = read_anatomy(work)
        result |= _parts(anatomy, file.name)
        lines[1:1] = _part_lines(anatomy, [value.name for value in model.graph.output])
        reason = anatomy.head.refusal
        if reason is None:
            result["by_image"] = refusals(model, geometry_of(anatomy, file.name), str(file))
            lines.append(_by_image_line(result["by_image"]))
    except (GraphError, InputError) as error:
        reason = str(error)
    result |= {"slimmable": reason is None, "reason": reason}
    if reason is not None:
        slim = any(block["queries"] < block["keys"] for block in result["blocks"])
        more = "no more tokens can be dropped: it is slim already; " if slim else ""
        lines.append(more + ("" if slim else "tokens cannot be dropped: ") + reason)
    if manifest is not None:
        result["manifest"] = manifest.model_dump(mode="json")
        if "build" in manifest.results:
            lines += record_lines(build_record(manifest, file))
    return result, "\n".join(lines)


def _counted(model: onnx.ModelProto) -> MacCount:
    """As the file is; where nodes compute shapes from the batch, folded for one image."""
    try:
        return count_macs(model)
    except InputError:
        return count_macs(prepared(model, GraphOptions(fixed_batch=1)).export())


def _macs(count: MacCount) -> str:
    """The total of an image, which is partial if a node could not be counted."""
    total = f"{count.total / count.batch / 1e9:.4f} GMAC an image"
    if not count.uncounted:
        return total
    names = ", ".join(count.uncounted[:3]) + ", ..." * (len(count.uncounted) > 3)
    return f"{total} and more: {len(count.uncounted)} nodes are not counted ({names})"


def _counts(blocks: Sequence[Block]) -> list[dict[str, int]]:
    return [{"queries": block.queries, "keys": block.keys} for block in blocks]


def _parts(anatomy: Anatomy, name: str) -> dict[str, Any]:
    geometry = geometry_of(anatomy, name).model_dump(mode="json")
    tables = [
        {"name": t.name, "shape": t.shape, "token_axes": t.axes, "node": t.node}
        for t in anatomy.tables
    ]
    return {"geometry": geometry, "input": anatomy.image.name, "tables": tables}


def _part_lines(anatomy: Anatomy, outputs: Sequence[str]) -> list[str]:
    channels, height, width = anatomy.image.size
    down, across = anatomy.grid
    lines = [
        f"  image         '{anatomy.image.name}', {channels} x {height} x {width}",
        f"  tokens        {anatomy.tokens}: {anatomy.prefix} before the patches, "
        f"{down} x {across} patches",
        f"  width         {anatomy.width}, {anatomy.heads} heads, MLP {anatomy.mlp_width}",
        f"  head          {_head(anatomy)}",
    ]
    if len(outputs) > 1:
        lines.append(f"  outputs       {', '.join(outputs)}: choose with --outputs")
    return lines + [f"  table         {line}" for line in _table_lines(anatomy)]


def _head(anatomy: Anatomy) -> str:
    head, all_tokens = anatomy.head, range(anatomy.tokens)
    words = []
    if head.reads:
        words.append(f"reads {_ids(head.reads, all_tokens)}")
    if head.pools:
        words.append(f"pools over {_ids(head.pools, all_tokens)} (needs --pool-kept)")
    if anatomy.num_classes:
        words.append(f"{anatomy.num_classes} classes")
    return ", ".join(words)


def _by_image_line(refused: Mapping[PerImage, str | None]) -> str:
    """What `--dynamic` could be, and why not."""
    allowed = [f"--dynamic {way}" for way, reason in refused.items() if reason is None]
    denied = {way: reason for way, reason in refused.items() if reason is not None}
    words = [", ".join(allowed)] if allowed else []
    if denied:  # the last way asks for the least: what stands against it does so for all
        words.append(f"not {' or '.join(denied)}: {[*denied.values()][-1]}")
    return f"  by image      {'; '.join(words)}"


def _ids(ids: Sequence[int], everything: range) -> str:
    """`token 0`, `tokens 1 to 196`, `tokens 0, 2, 5`, or all of them."""
    if len(ids) == len(everything):
        return f"all {len(ids)} tokens"
    if len(ids) == 1:
        return f"token {ids[0]}"
    if ids[-1] - ids[0] == len(ids) - 1:
        return f"tokens {ids[0]} to {ids[-1]}"
    return f"tokens {', '.join(map(str, ids[:8]))}" + " ..." * (len(ids) > 8)


def _table_lines(anatomy: Anatomy) -> list[str]:
    """One line for each shape: a table of every block has the same."""
    lines = []
    for _, group in groupby(anatomy.tables, key=lambda table: (table.shape, table.axes)):
        same = list(group)
        shape = " x ".join(map(str, same[0].shape))
        more = f", and {len(same) - 1} more of this shape" * (len(same) > 1)
        lines.append(f"'{same[0].name}' {shape} at {same[0].node}{more}")
    return lines


def _block_lines(blocks: Sequence[Block], misses: Sequence[str]) -> list[str]:
    """One line for each run of blocks with the same counts."""
    lines = []
    numbered = enumerate(blocks, 1)
    for counts, group in groupby(numbered, key=lambda item: (item[1].queries, item[1].keys)):
        numbers = [number for number, _ in group]
        name = f"block {numbers[0]}" if len(numbers) == 1 else f"blocks {numbers[0]}-{numbers[-1]}"
        lines.append(f"  {name:<13} {counts[0]} queries, {counts[1]} keys")
    return lines + [f"  note          {miss}" for miss in misses]
