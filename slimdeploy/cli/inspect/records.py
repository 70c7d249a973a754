"""What `slimdeploy inspect` says of the records that other verbs leave, in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slimdeploy.manifest import Manifest
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule

Data = dict[str, Any]


def schedule_line(file: Path, schedule: KeepSchedule) -> str:
    """Whose tokens it keeps, what chose them, and whether weights go with it."""
    model, made = schedule.model, schedule.provenance
    how = f"chosen by {made.impact if made and made.impact else 'unknown'}"
    if schedule.dynamic is not None:
        by = f"chosen by {schedule.dynamic.scorer}"
        how = f"{'merged' if schedule.dynamic.merges else by}, image by image"
    recovered = made.reconstruct if made and made.reconstruct not in (None, "none") else None
    weights = f"weights recovered by {recovered}" if recovered else "the dense model's weights"
    if schedule.slim_checkpoint is not None:
        weights += f", in {schedule.slim_checkpoint.path}"
    return f"{file}: keep schedule of {model.name} ({model.source}), {how}; {weights}"


def manifest_lines(file: Path, record: Manifest) -> list[str]:
    """What the file beside it is, and from what and how it was made."""
    it = record.artifact
    size = f"{it.bytes / 1e6:.1f} MB"
    lines = [f"{file}: describes {it.name} ({record.kind}, {size}, SHA-256 {it.sha256[:12]})"]
    lines += [f"  {'part':<13} {name}, SHA-256 {sha[:12]}" for name, sha in it.parts.items()]
    lines += [
        f"  {role:<13} {source.path}, SHA-256 {source.sha256[:12]}"
        for role, source in record.made_from.items()
    ]
    if record.tokens_per_block:
        lines.append(f"  tokens        {' '.join(map(str, record.tokens_per_block))}")
    if record.precision:
        weights = ", ".join(f"{count:,} {kind}" for kind, count in record.precision.items())
        lines.append(f"  weights       {weights}")
    if record.preprocessing is not None:
        lines.append(f"  images        {_pixels(record.preprocessing)}")
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    lines.append(
        f"  made by       slimdeploy {record.slimdeploy}" + f", {versions}" * bool(versions)
    )
    lines += [f"  command       {' '.join(record.command)}"] if record.command else []
    lines += [f"  record of     {', '.join(record.results)} (--json)"] if record.results else []
    return lines


def _pixels(images: Preprocessing) -> str:
    size = " x ".join(map(str, images.input_size))
    mean, std = (" ".join(f"{x:g}" for x in values) for values in (images.mean, images.std))
    return f"{size}, mean {mean}, std {std}, {images.interpolation}, crop {images.crop_pct:g}"


def _verification(data: Data) -> list[str]:
    files = data["files"]
    verdict = "PASSED" if data["passed"] else "FAILED"
    lines = [f"{files['slim']['path']}: {verdict} against {files['dense']['path']}"]
    lines += [f"  structure     {data['problem']}"] if data["problem"] else []
    for kind, proof in data["results"].items():
        worst = max((parity["relative"] for parity in proof["outputs"].values()), default=0.0)
        streams = f", {len(proof['blocks'])} streams compared" * bool(proof["blocks"])
        lines.append(
            f"  {kind:<13} {proof['images']} images, outputs differ by {worst:.1e} of their "
            f"scale{streams}"
        )
    return lines + [f"  note          {note}" for note in data["notes"]]


def _sweep(data: Data) -> list[str]:
    dense, images = data["dense"], data["test"]["images"]
    lines = [
        f"a sweep on {images} test images; dense: {dense['top1']:.2%}, {dense['gmac']:.3f} GMAC"
    ]
    for group in data["groups"]:
        low, high = (100 * group["difference_interval"][end] for end in ("low", "high"))
        lines.append(
            f"  {group['impact']:<13} {group['macs'] / 1e9:.3f} GMAC, top-1 {group['top1']:.2%} "
            f"({100 * group['difference']:+.2f} points, {low:+.2f} to {high:+.2f})"
        )
    return lines


def _ranges(data: Data) -> list[str]:
    images, model = data["images"], data["model"]["name"]
    return [
        f"ranges of {len(data['tensors'])} tensors of {model}, by {data['method']}, on "
        f"{images['count']} images of {images['source']}"
    ]


def _images(data: Data) -> list[str]:
    return [f"{len(data['files'])} calibration images, of the split {data['split']}"]


_SAID: dict[str, Callable[[Data], list[str]]] = {
    "verification": _verification,
    "sweep": _sweep,
    "ranges": _ranges,
    "calibration-list": _images,
}


def record_lines(file: Path, data: Data) -> list[str] | None:
    """A record of another verb; None for one of no kind that is known.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError: for one that is
            damaged.
    """
    tell = _SAID.get(str(data.get("kind")))
    if tell is None:
        return None
    first, *more = tell(data)
    return [f"{file}: {first}", *more]
