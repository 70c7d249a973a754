"""`slimdeploy slim --onnx`: from a dense file and images to a slim file, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType

from slimdeploy import __version__
from slimdeploy.cli.common import (
    command_line,
    open_images,
    show,
    summary,
    summary_table,
    weights_file,
)
from slimdeploy.cli.export_stage import PACKAGES
from slimdeploy.cli.onnx_source import DenseFile, open_dense, require_droppable
from slimdeploy.cli.preprocessing import Triple, given_preprocessing
from slimdeploy.console import note, progress_bar
from slimdeploy.counts import Shape
from slimdeploy.errors import InputError, requires
from slimdeploy.files import check_writable
from slimdeploy.forward.choices import ForwardImpact, require_forward
from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.graph.options import GraphOptions, Select
from slimdeploy.graph.storage import replaced_model, save_model
from slimdeploy.manifest import write_manifest
from slimdeploy.preprocessing import Interpolation, Preprocessing
from slimdeploy.schedule import KeepSchedule, Provenance
from slimdeploy.slim.choices import ImpactName, Reconstruct

if TYPE_CHECKING:
    from slimdeploy.forward.slimming import ForwardRequest, ForwardSlim, Progress
    from slimdeploy.forward.store import Array, Store
    from slimdeploy.images import ImageFolder

_HELD_OUT = 8


@dataclass(frozen=True)
class OnnxSlim:
    """The flags of `slim --onnx`; see there."""

    data_dir: Path
    split: str | None
    mac_reduction: float | None
    shape: Shape
    multiple_of: int
    impact: ImpactName | ForwardImpact | None
    reconstruct: Reconstruct
    images: int
    search_images: int
    ridge: float
    seed: int
    select: Select
    optimize: bool
    outputs: tuple[str, ...]
    pool_kept: bool
    mean: Triple | None
    std: Triple | None
    interpolation: Interpolation
    crop_pct: float

    def request(self) -> ForwardRequest:
        """What is asked of the graph.

        Raises:
            InputError: for what only the PyTorch path can do.
        """
        from slimdeploy.forward.slimming import ForwardRequest

        if self.mac_reduction is None:
            raise InputError("--onnx: give --mac-reduction, the share of MACs to save, as 0.46")
        if self.reconstruct == "gradient":
            raise InputError("--reconstruct gradient: needs --model; with --onnx: refit or none")
        return ForwardRequest(
            mac_reduction=self.mac_reduction,
            shape=self.shape,
            multiple_of=self.multiple_of,
            impact=require_forward(self.impact or "grid"),
            reconstruct=self.reconstruct,
            seed=self.seed,
            search_images=self.search_images,
            ridge=RidgeOptions(strength=self.ridge),
            options=GraphOptions(self.select, self.optimize, pool_kept=self.pool_kept),
        )

    def preprocessing(self, dense: DenseFile) -> Preprocessing:
        """As the flags say, else as the file's manifest does.

        Raises:
            InputError: if neither does.
        """
        size = dense.geometry.input_size
        given = given_preprocessing(size, self.mean, self.std, self.interpolation, self.crop_pct)
        found = given or dense.preprocessing
        if found is None:
            raise InputError(
                f"{dense.path}: no manifest beside it records its preprocessing; give --mean and "
                "--std, and --interpolation and --crop-pct if they are not bicubic and 1.0"
            )
        return found


def slim_file(
    path: Path,
    flags: OnnxSlim,
    output: Path,
    output_schedule: Path | None,
    output_dense: Path | None,
    json: bool,
) -> None:
    """Slim the dense file at `path` into `output`; its schedule goes beside it.

    Raises:
        InputError, GraphError: for what cannot be slimmed; the message says why.
        GateError: if a check fails; nothing is written then.
    """
    request = flags.request()
    schedule_path = output_schedule or output.with_suffix(".json")
    targets = [output, schedule_path, *([output_dense] if output_dense else [])]
    for index, target in enumerate(targets):
        check_writable(target, path, *targets[:index])
    dense = open_dense(path, flags.outputs)
    require_droppable(dense)
    _check_pooling(dense, flags)
    preprocessing = flags.preprocessing(dense)
    sample = _sample(flags)
    with requires("cpu"):
        import onnxruntime  # noqa: F401
    with _told(dense, request) as tell:
        made = _slimmed(dense, preprocessing, sample, request, tell)
    schedule = _schedule(dense, flags, request, made, preprocessing, sample, schedule_path)
    _write(made, schedule, preprocessing, path, output, schedule_path, output_dense)
    result = _result(made, schedule, output, schedule_path)
    show(result, _table(made, schedule, output), json)


def _slimmed(
    dense: DenseFile,
    preprocessing: Preprocessing,
    sample: ImageFolder,
    request: ForwardRequest,
    tell: Progress,
) -> ForwardSlim:
    """Fit to the images, but for one in eight, which measures the result."""
    from slimdeploy.forward.slimming import slim_forward
    from slimdeploy.forward.store import open_store

    out = set(range(_HELD_OUT - 1, len(sample), _HELD_OUT))
    if not out:
        note(f"fewer than {_HELD_OUT} images: none is held out to measure the result")
    with open_store() as store:
        fitted = _arrays(sample, set(range(len(sample))) - out, preprocessing, store)
        return slim_forward(
            dense.model,
            dense.geometry,
            fitted,
            request,
            held_out=_arrays(sample, out, preprocessing, store) if out else None,
            source=str(dense.path),
            progress=tell,
        )


def _arrays(
    folder: ImageFolder, numbers: set[int], preprocessing: Preprocessing, store: Store
) -> Array:
    """The images of these numbers, preprocessed, [n, C, H, W]."""
    files = tuple(folder.files[i] for i in sorted(numbers))
    part = replace(folder, files=files, labels=(0,) * len(files))
    result = store.new((len(files), *preprocessing.input_size), np.float32)
    start = 0
    for batch in part.batches(preprocessing, 32):
        result[start : start + len(batch.images)] = batch.images
        start += len(batch.images)
    return result


def _check_pooling(dense: DenseFile, flags: OnnxSlim) -> None:
    pooled = dense.geometry.head_pools
    if pooled and not flags.pool_kept:
        raise InputError(
            f"{dense.path}: its head pools over {len(pooled)} tokens; --pool-kept lets it pool "
            "over those that are kept, which is another function: evaluate it"
        )


def _sample(flags: OnnxSlim) -> ImageFolder:
    folder = open_images(flags.data_dir, flags.split, "train", labelled=False)
    sample = folder.sample(flags.images, flags.seed)
    if len(sample) < flags.images:
        note(f"{folder.root}: only {len(sample)} images there, {flags.images} were asked for")
    return sample


@contextmanager
def _told(dense: DenseFile, request: ForwardRequest) -> Iterator[Progress]:
    """A bar and lines on stderr."""
    from slimdeploy.forward.slimming import steps

    with progress_bar() as progress:
        bar = progress.add_task("slimming", total=steps(dense.geometry, request))

        def tell(line: str) -> None:
            progress.advance(bar)
            note(line)

        yield tell


def _schedule(
    dense: DenseFile,
    flags: OnnxSlim,
    request: ForwardRequest,
    made: ForwardSlim,
    preprocessing: Preprocessing,
    sample: ImageFolder,
    path: Path,
) -> KeepSchedule:
    return KeepSchedule(
        model=dense.geometry,
        preprocessing=preprocessing,
        pool_kept=flags.pool_kept and bool(dense.geometry.head_pools),
        layers=tuple(made.layers),
        checkpoint=weights_file(dense.path, path),
        provenance=Provenance(
            slimdeploy=__version__,
            command=command_line(),
            seed=request.seed,
            impact=request.impact,
            shape=request.shape,
            mac_reduction=request.mac_reduction,
            reconstruct=request.reconstruct,
            images=len(sample),
            data=sample.digest(),
        ),
    )


def _write(
    made: ForwardSlim,
    schedule: KeepSchedule,
    preprocessing: Preprocessing,
    source: Path,
    output: Path,
    schedule_path: Path,
    output_dense: Path | None,
) -> None:
    """The graphs, then what describes them."""
    with replaced_model(output) as temporary:
        save_model(made.model, temporary)
    schedule.write(schedule_path)
    made_from = {"dense": source, "schedule": schedule_path}
    write_manifest(
        output,
        kind="slim-onnx",
        made_from=made_from,
        command=command_line(),
        packages=PACKAGES,
        preprocessing=preprocessing,
        tokens_per_block=[block.queries for block in made.blocks],
        results=_evidence(made),
    )
    if output_dense is not None:
        save_model(made.dense, output_dense)
        write_manifest(
            output_dense,
            kind="dense-onnx",
            made_from=made_from,
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


def _result(
    made: ForwardSlim, schedule: KeepSchedule, output: Path, schedule_path: Path
) -> dict[str, Any]:
    return {
        "output": str(output),
        "schedule": str(schedule_path),
        **summary(schedule),
        **_evidence(made),
        "notes": made.notes,
    }


def _table(made: ForwardSlim, schedule: KeepSchedule, output: Path) -> RenderableType:
    """The result for a person."""
    lines = [
        f"wrote {output}: differs from the masked dense graph by {made.final.relative:.1e} of the "
        f"outputs' scale on {made.final.rows} images"
    ]
    for name, error in (("before the refit", made.before), ("after the refit", made.after)):
        if error is not None:
            lines.append(
                f"{name}: relative error {error.head_input:.4f} of the head's input, "
                f"{error.outputs:.4f} of the outputs, top-1 as dense on "
                f"{error.top1_agreement:.1%} of {error.images} held-out images"
            )
    return Group(summary_table(schedule), *lines, *made.notes)
