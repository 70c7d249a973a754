"""`slimdeploy verify --dense`: a slim file against the masked dense graph, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from slimdeploy import __version__
from slimdeploy.cli.common import check_weights_safe, command_line, load_onnx, show
from slimdeploy.cli.other_weights import weights_remark
from slimdeploy.cli.verify.check import Check
from slimdeploy.cli.verify.record import (
    first_failure,
    identity,
    proof_record,
    protocol,
    sentences,
)
from slimdeploy.errors import GateError, GraphError, InputError
from slimdeploy.files import check_writable, write_text
from slimdeploy.manifest import manifest_path, package_versions

if TYPE_CHECKING:
    import onnx

    from slimdeploy.measure.block_parity import Array
    from slimdeploy.measure.image_proof import ImagePair
    from slimdeploy.measure.proof import Pair, Proof

PACKAGES = ("onnx", "onnx-graphsurgeon", "onnxruntime", "numpy")
_QUANTISED = (
    "this file holds 8-bit products: what differs may be rounding. Prove the float32 file that it "
    "was made from, and judge this one by `evaluate`, or when it is made by --max-top1-drop"
)


def verify_dense(check: Check, as_json: bool) -> None:
    """Compare, write the record, and say what was found.

    Raises:
        GateError: if anything differs; the message names the first stream that does and the worst.
        InputError: if a file cannot be read, or schedule and dense file do not fit.
    """
    record, proofs = prove_file(check)
    problem, passed = record["problem"], record["passed"]
    show(record, sentences(check, problem, proofs, passed), as_json)
    require_proven(check, record, proofs)


def require_proven(check: Check, record: dict[str, Any], proofs: dict[str, Proof]) -> None:
    """Stop if the comparison failed.

    Raises:
        GateError: naming the first stream that differs and the worst.
    """
    if not record["passed"]:
        found = record["problem"] or first_failure(proofs)
        hint = _other_weights(check)
        raise GateError(f"{check.slim}: {found}" + (f"; {hint}" if hint else ""))


def prove_file(check: Check) -> tuple[dict[str, Any], dict[str, Proof]]:
    """Compare, and write the record, passed or not; the record and what it rests on.

    Raises:
        InputError: if a file cannot be read, or schedule and dense file do not fit.
    """
    from slimdeploy.measure.onnx_file import coarsest_weights
    from slimdeploy.measure.parity import TOLERANCES

    start = perf_counter()
    check_writable(check.output, *check.files.values(), *map(manifest_path, check.files.values()))
    for model in (check.dense, check.slim):
        check_weights_safe(check.output, model)
    dense, slim = load_onnx(check.dense), load_onnx(check.slim)
    weights = coarsest_weights(dense, slim)
    tolerance = check.tolerance or TOLERANCES[weights]
    if any(node.op_type == "QuantizeLinear" for node in slim.graph.node):
        check.notes.append(_QUANTISED)
    problem = _structure_problem(check, slim, dense)
    proofs, problem = _compare(check, dense, slim, tolerance, problem)
    passed = not problem and all(proof.passed for proof in proofs.values())
    if not passed and (hint := _other_weights(check)):
        check.notes.append(hint)
    record = {
        "format": 1,
        "kind": "verification",
        "passed": passed,
        "problem": problem,
        "files": {role: identity(path) for role, path in check.files.items()},
        "protocol": protocol(check, weights, tolerance),
        "results": {kind: proof_record(proof) for kind, proof in proofs.items()},
        "notes": check.notes,
        "command": list(command_line()),
        "slimdeploy": __version__,
        "versions": package_versions(PACKAGES),
        "seconds": round(perf_counter() - start, 1),
    }
    write_text(check.output, json.dumps(record, indent=2) + "\n")
    return record, proofs


def _other_weights(check: Check) -> str | None:
    """What may be behind a difference: the schedule goes with other weights than the dense file."""
    if check.schedule is None or check.keep_schedule is None:
        return None
    return weights_remark(check.schedule, check.keep_schedule, check.dense)


def _structure_problem(check: Check, slim: onnx.ModelProto, dense: onnx.ModelProto) -> str | None:
    """What is wrong with the slim graph as a graph: invalid, other counts, operators added."""
    from slimdeploy.graph import check_graph

    counts, plan = None, check.plan
    try:
        if check.schedule is not None:
            have = check.schedule.counts
            keys = plan.keys if plan else [check.schedule.model.tokens, *have]
            counts = list(zip(have, keys, strict=False))
            counts = counts[: _blocks_to_compare(check, slim, len(counts))]
        check_graph(slim, counts, dense, plan.operators if plan else None)
    except GraphError as error:
        return str(error)
    return None


def _blocks_to_compare(check: Check, slim: onnx.ModelProto, depth: int) -> int:
    """All blocks, or for a probe, which ends in the residual stream, those that it has."""
    from slimdeploy.graph.probes import find_probes, inlined

    if [value.name for value in slim.graph.output] != ["stream"]:
        return depth
    if check.plan is not None:
        raise InputError(
            f"{check.slim}: is a probe, whose tokens are each image's own: it cannot be compared; "
            "verify the whole file, and compare a compiler's probe with this one's outputs"
        )
    blocks = len(find_probes(inlined(slim)))
    check.notes.append(f"a probe of {blocks} of {depth} blocks: what follows was not compared")
    return blocks


def _compare(
    check: Check,
    dense: onnx.ModelProto,
    slim: onnx.ModelProto,
    tolerance: float,
    problem: str | None,
) -> tuple[dict[str, Proof], str | None]:
    """What the numbers say, as far as they can be had, and the first problem there is."""
    from slimdeploy.measure.image_proof import prove_images
    from slimdeploy.measure.proof import Pair, prove

    proofs: dict[str, Proof] = {}
    try:
        pair = _pair(check, dense, slim)
    except GateError as error:
        return proofs, problem or str(error)
    try:
        for kind, batches in _image_sets(check, dense, pair.batch).items():
            proofs[kind] = (
                prove(pair, batches, tolerance, check.threads)
                if isinstance(pair, Pair)
                else prove_images(pair, batches, tolerance, check.threads)
            )
        if not isinstance(pair, Pair):
            check.notes.append(pair.remark)
    except GateError as error:
        problem = problem or str(error)
    except InputError:  # a graph known to be broken may well not run
        if problem is None:
            raise
    return proofs, problem


def _pair(check: Check, dense: onnx.ModelProto, slim: onnx.ModelProto) -> Pair | ImagePair:
    from slimdeploy.measure.image_pairs import image_pair
    from slimdeploy.measure.proof import pair

    schedule = check.schedule
    keep = None if schedule is None else schedule.keep
    pool_kept = check.pool_kept or (schedule is not None and schedule.pool_kept)
    # A head that reads single tokens has nothing to pool, whatever was asked.
    pool_kept = pool_kept and (schedule is None or bool(schedule.model.head_pools))
    try:
        if check.plan is not None:
            return image_pair(dense, slim, check.slim, check.plan)
        found = pair(dense, slim, check.slim, keep, pool_kept=pool_kept, per_block=check.per_block)
    except (GraphError, InputError) as error:
        _check_schedule(check, dense)  # a schedule of another model is the better reason
        raise type(error)(f"{check.dense}: {error}") from error
    check.notes.extend(found.remarks)
    if keep is None and found.remarks:
        check.notes.append("if tokens were dropped, give the schedule with --keep-schedule")
    return found


def _check_schedule(check: Check, dense: onnx.ModelProto) -> None:
    """Refuse a schedule that was made for another model.

    Raises:
        InputError: with the first field that differs.
    """
    from slimdeploy.graph.anatomy import read_anatomy
    from slimdeploy.graph.anatomy.geometry import check_geometry, geometry_of
    from slimdeploy.graph.outputs import keep_outputs
    from slimdeploy.graph.slimming import prepared

    if check.schedule is None:
        return
    wanted = check.schedule.model
    try:
        keep_outputs(dense, wanted.outputs)
        found = geometry_of(read_anatomy(prepared(dense)), check.dense.name)
    except (GraphError, InputError):
        return
    check_geometry(found, wanted, str(check.keep_schedule))


def _image_sets(check: Check, dense: onnx.ModelProto, batch: int) -> dict[str, Iterator[Array]]:
    from slimdeploy.measure.feeding import noise

    sets = {"random": noise(dense, check.images, check.seed, batch)}
    if check.folder is not None:
        batches = check.folder.batches(check.preprocessing(), batch)
        sets["real"] = (batch.images for batch in batches)
    return sets
