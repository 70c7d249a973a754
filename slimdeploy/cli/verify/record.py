"""What `slimdeploy verify --dense` writes down and says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdeploy.cli.verify.check import Check
from slimdeploy.files import sha256_file

if TYPE_CHECKING:
    from slimdeploy.measure.proof import Proof
    from slimdeploy.schedule import KeepSchedule


def identity(path: Path) -> dict[str, Any]:
    """A file by its contents, with the files of weights beside it."""
    from slimdeploy.measure.onnx_file import external_files, load_structure

    identity: dict[str, Any] = {"path": str(path), "sha256": sha256_file(path)}
    if path.suffix == ".onnx" and (names := external_files(load_structure(path))):
        identity["parts"] = {name: sha256_file(path.parent / name) for name in names}
    return identity


def protocol(check: Check, weights: str, tolerance: float) -> dict[str, Any]:
    reference = "the dense graph"
    if check.schedule is not None:
        reference += ", every token computed, " + _changed(check.schedule)
    real: dict[str, Any] | None = None
    if check.folder is not None:
        real = {"folder": str(check.folder.root), "digest": check.folder.digest()}
        real["preprocessing"] = check.preprocessing().model_dump(mode="json")
    return {
        "reference": reference,
        "random_images": {"distribution": "standard normal", "seed": check.seed},
        "real_images": real,
        "tolerance": tolerance,
        "coarsest_weights": weights,
        "relative_to": "the largest absolute value of the reference tensor over all images",
        "runtime": "onnxruntime, cpu",
        "threads": check.threads,
    }


def _changed(schedule: KeepSchedule) -> str:
    """What the reference does to the dense graph's tokens."""
    if schedule.dynamic is not None and schedule.dynamic.merges:
        return "each the mean of its group where a block merges, as the file says for each image"
    dropped = "the dropped ones masked out of each block's attention"
    return dropped if schedule.dynamic is None else f"{dropped}, as the file says for each image"


def proof_record(proof: Proof) -> dict[str, Any]:
    from slimdeploy.measure.block_parity import first_bad, worst

    first, most = first_bad(proof.blocks), worst(proof.blocks)
    return {
        "images": proof.images,
        "passed": proof.passed,
        "outputs": {name: parity.to_json() for name, parity in proof.outputs.items()},
        "first_bad": None if first is None else first.to_json(),
        "worst": None if most is None else most.to_json(),
        "blocks": [result.to_json() for result in proof.blocks],
    }


def sentences(check: Check, problem: str | None, proofs: dict[str, Proof], passed: bool) -> str:
    from slimdeploy.measure.block_parity import worst

    lines = [f"{check.slim}: {'PASSED' if passed else 'FAILED'} against {check.dense}"]
    lines += [f"  structure: {problem}"] if problem else ["  structure: as it should be"]
    for kind, proof in proofs.items():
        lines.append(f"  {proof.images} {kind} images:")
        lines += [f"    output '{name}': {parity}" for name, parity in proof.outputs.items()]
        if (most := worst(proof.blocks)) is not None:
            lines.append(f"    {len(proof.blocks)} streams of blocks, the worst: {most}")
    return "\n".join([*lines, *(f"  note: {line}" for line in check.notes)])


def first_failure(proofs: dict[str, Proof]) -> str:
    """What differs, for the one line of the error."""
    from slimdeploy.measure.block_parity import first_bad, worst

    kind, proof = next((kind, proof) for kind, proof in proofs.items() if not proof.passed)
    first, most = first_bad(proof.blocks), worst(proof.blocks)
    if first is None or most is None:
        name, parity = next((n, p) for n, p in proof.outputs.items() if not p.passed)
        before = "all streams before it agree" if proof.blocks else "no stream was compared"
        return f"output '{name}' differs on {kind} images: {parity}; {before}"
    said = f"differs on {kind} images, first in {first}"
    return said if most is first else f"{said}; most in {most}"
