"""What `slim --onnx` leaves behind: the slim file, its schedule and manifest, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from slimdeploy import __version__
from slimdeploy.cli.common import command_line, summary, summary_table
from slimdeploy.cli.export.stage import PACKAGES
from slimdeploy.cli.onnx_source import DenseFile
from slimdeploy.dynamic import dense_reference
from slimdeploy.files import staged
from slimdeploy.graph.files.storage import replaced_model, write_model
from slimdeploy.manifest import Source, write_manifest
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule, Provenance, WeightsFile

if TYPE_CHECKING:
    from slimdeploy.forward.slimming import ForwardRequest, ForwardSlim


def schedule_of(
    dense: DenseFile,
    request: ForwardRequest,
    made: ForwardSlim,
    preprocessing: Preprocessing,
    weights: WeightsFile,
    images: int,
    data: str,
) -> KeepSchedule:
    """The keep schedule of what was made of the dense file `weights`.

    Args:
        images: how many it was fitted to; `data` is their digest.
    """
    return KeepSchedule(
        model=dense.geometry,
        preprocessing=preprocessing,
        pool_kept=request.options.pool_kept and bool(dense.geometry.head_pools),
        layers=tuple(made.layers),
        dynamic=made.dynamic,
        checkpoint=weights,
        provenance=Provenance(
            slimdeploy=__version__,
            command=command_line(),
            seed=request.seed,
            impact=None if made.dynamic else request.impact,
            shape=made.shape,
            mac_reduction=request.mac_reduction,
            reconstruct=request.reconstruct,
            images=images,
            data=data,
        ),
    )


def write_files(
    made: ForwardSlim,
    schedule: KeepSchedule,
    preprocessing: Preprocessing,
    source: Path,
    output: Path,
    schedule_path: Path,
    output_dense: Path | None,
) -> None:
    """The graphs and what describes them; all are written before the first takes its name."""
    with ExitStack() as files:
        slim = files.enter_context(replaced_model(output))
        schedule_file = files.enter_context(staged(schedule_path))
        schedule.write(schedule_file)
        describe = _describer(source, Source.of(schedule_path, schedule_file), preprocessing)
        write_model(made.model, slim)
        counts = [block.queries for block in made.blocks]
        describe(slim, kind="slim-onnx", tokens_per_block=counts, results=_evidence(made))
        if output_dense is not None:
            dense = files.enter_context(replaced_model(output_dense))
            write_model(made.dense, dense)
            describe(dense, kind="dense-onnx")


def _describer(source: Path, schedule: Source, preprocessing: Preprocessing) -> Callable[..., Path]:
    """`write_manifest` with what both graphs have in common."""
    return partial(
        write_manifest,
        made_from={"dense": Source.of(source), "schedule": schedule},
        command=command_line(),
        packages=PACKAGES,
        preprocessing=preprocessing,
    )


def _evidence(made: ForwardSlim) -> dict[str, Any]:
    errors = {"before": made.before, "after": made.after}
    shown = {name: None if x is None else x.to_json() for name, x in errors.items()}
    return {
        "parity": made.final.to_json(),
        "parity_before_refit": made.parity.to_json(),
        "held_out": shown,
    }


def result_of(
    made: ForwardSlim, schedule: KeepSchedule, output: Path, schedule_path: Path
) -> dict[str, Any]:
    """The result for a program."""
    return {
        "output": str(output),
        "schedule": str(schedule_path),
        **summary(schedule),
        **_evidence(made),
        "notes": made.notes,
    }


def sentences(made: ForwardSlim, schedule: KeepSchedule, output: Path) -> RenderableType:
    """The result for a person."""
    lines = [
        f"wrote {output}: differs from {dense_reference(made.dynamic)} by "
        f"{made.final.relative:.1e} of the outputs' scale on {made.final.rows} images"
    ]
    before = "before the refit" if made.after else "with the dense weights"
    for name, error in ((before, made.before), ("after the refit", made.after)):
        if error is not None:
            agreed = error.top1_agreement
            answers = "" if agreed is None else f", top-1 as dense on {agreed:.1%}"
            lines.append(
                f"{name}: relative error {error.head_input:.4f} of the head's input, "
                f"{error.outputs:.4f} of the outputs{answers}, of {error.images} held-out images"
            )
    return Group(summary_table(schedule), *lines, *made.notes)
