"""What `slimdeploy inspect` says of an engine: its record, and whether it will load here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from slimdeploy.engine.building.record import BuildRecord
from slimdeploy.engine.host import this_host
from slimdeploy.engine.preflight import Verdict, open_record, preflight
from slimdeploy.manifest import Manifest


def plan_report(file: Path) -> tuple[dict[str, Any], str]:
    """A record for programs, and lines for a person. The engine itself is not loaded.

    Raises:
        InputError: if the engine or its manifest is missing or no record of a build.
        GateError: if the engine is not the file that its manifest describes.
    """
    manifest, record = open_record(file)
    verdict = preflight(manifest, record, this_host())
    result = {
        "manifest": manifest.model_dump(mode="json"),
        "preflight": {
            "loads": verdict.loads,
            "missing": verdict.missing,
            "refused": verdict.refused,
            "cautions": verdict.cautions,
            "rebuild": verdict.rebuild,
        },
    }
    size = manifest.artifact.bytes / 1e6
    head = f"{file}: {manifest.kind}, {size:.1f} MB, as its manifest describes it"
    lines = [head, *record_lines(record), *_made_from(manifest), *verdict_lines(verdict)]
    return result, "\n".join(lines)


def record_lines(record: BuildRecord) -> list[str]:
    """A build for a person, a fact a line."""
    gpu = "no GPU" if record.gpu is None else f"{record.gpu.name} ({record.gpu.sm})"
    lines = [
        f"  built by      {record.backend} {record.version} on {gpu}, {record.build_seconds:.1f} s"
        + " (from the cache)" * record.cached,
        f"  runs on       {record.targets}",
        f"  batch         {_batch(record)}",
    ]
    for kind, tensors in (("takes", record.inputs), ("gives", record.outputs)):
        for tensor in tensors:
            sizes = ", ".join("?" if size is None else str(size) for size in tensor.shape)
            lines.append(f"  {kind:<13} '{tensor.name}' {tensor.dtype}[{sizes}]")
    return [*lines, *_block_lines(record), *_kernel_lines(record)]


def _batch(record: BuildRecord) -> str:
    if record.batch is not None:
        low, best, high = record.batch
        return f"{low} to {high}, tuned for {best}"
    varies = any(tensor.shape[:1] == (None,) for tensor in record.inputs)
    return "any" if varies else "fixed"


def _block_lines(record: BuildRecord) -> list[str]:
    """One line for each run of blocks with the same counts."""
    lines = []
    numbered = enumerate(record.blocks, 1)
    for (queries, keys), group in groupby(numbered, key=lambda i: (i[1].queries, i[1].keys)):
        numbers = [number for number, _ in group]
        name = f"block {numbers[0]}" if len(numbers) == 1 else f"blocks {numbers[0]}-{numbers[-1]}"
        lines.append(f"  {name:<13} {queries} queries, {keys} keys")
    if lines:
        lines[0] += f" (read from the {record.blocks_read_from})"
    return lines


def _kernel_lines(record: BuildRecord) -> list[str]:
    lines = []
    if record.kernels:
        counts = record.kernels
        lines.append(
            f"  kernels       {counts['kernels']}; attention is one kernel in "
            f"{counts['fused_attentions']} of {counts['blocks']} blocks "
            f"(read from the {record.kernels_read_from})"
        )
    lines += [f"  finding       {finding.message}" for finding in record.findings]
    return lines + [f"  note          {note}" for note in record.notes]


def _made_from(manifest: Manifest) -> list[str]:
    return [
        f"  made from     {role} {source.path} ({source.sha256[:12]})"
        for role, source in manifest.made_from.items()
    ]


def verdict_lines(verdict: Verdict) -> Sequence[str]:
    """Whether it will load on this machine, and if not, what to do."""
    lines = [f"  caution       {caution}" for caution in verdict.cautions]
    if verdict.loads:
        return [*lines, "loads here: nothing is known to stand against it"]
    lines.append(f"does not load here: {'; '.join((*verdict.missing, *verdict.refused))}")
    if verdict.refused:
        lines.append(f"rebuild with: {verdict.rebuild}")
    return lines
