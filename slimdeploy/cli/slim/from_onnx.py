"""`slimdeploy slim --onnx`: from a dense file and images to a slim file, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy import __version__
from slimdeploy.cli.common import (
    check_suffix,
    check_weights_safe,
    load_arrays,
    open_images,
    separated,
    show,
    weights_file,
)
from slimdeploy.cli.onnx_source import DenseFile, open_dense, require_droppable
from slimdeploy.cli.slim.flags import NO_POSITIONS, FileFlags, refuse
from slimdeploy.cli.slim.record import result_of, schedule_of, sentences, write_files
from slimdeploy.console import note, told_steps
from slimdeploy.counts import ShapeChoice
from slimdeploy.dynamic import PerImage
from slimdeploy.errors import InputError, requires
from slimdeploy.files import check_writable
from slimdeploy.forward.choices import require_forward, require_readers
from slimdeploy.forward.ridge import ridge_options
from slimdeploy.graph.options import GraphOptions
from slimdeploy.manifest import manifest_path
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.run_state import RunState, settings_of, work_folder
from slimdeploy.slim.choices import DEFAULT_IMPACT, SEARCH_IMAGES, Reconstruct, Strength

if TYPE_CHECKING:
    from slimdeploy.forward.slimming import ForwardRequest, ForwardSlim, Progress
    from slimdeploy.images import ImageFolder
    from slimdeploy.schedule import KeepSchedule, WeightsFile

_PER_HELD_OUT = 8
"""Images that are fitted to for one that measures the result."""


@dataclass(frozen=True)
class OnnxSlim:
    """The flags of `slim --onnx`; see there."""

    data_dir: Path
    split: str | None
    mac_reduction: float | None
    shape: ShapeChoice
    multiple_of: int
    impact: str | None
    reconstruct: Reconstruct
    images: int
    search_images: int
    ridge: Strength | None
    seed: int
    file: FileFlags
    dynamic: PerImage | None = None
    output_schedule: Path | None = None

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
        self.file.check()
        if self.dynamic is not None:
            self._refuse_of_search()
        return ForwardRequest(
            mac_reduction=self.mac_reduction,
            shape=self.shape,
            multiple_of=self.multiple_of,
            impact=require_forward(self.impact or DEFAULT_IMPACT),
            scorer=self.dynamic,
            reconstruct=self.reconstruct,
            seed=self.seed,
            search_images=self.search_images,
            ridge=ridge_options(self.ridge, self.dynamic is not None),
            options=GraphOptions(
                self.file.select, self.file.optimize, pool_kept=self.file.pool_kept
            ),
        )

    def _refuse_of_search(self) -> None:
        """Stop at flags of positions that are known beforehand."""
        looked_at = self.search_images
        refuse(
            NO_POSITIONS,
            impact=self.impact,
            search_images=None if looked_at == SEARCH_IMAGES else looked_at,
        )
        select = None if self.file.select == "gather" else self.file.select
        refuse("--dynamic", select=select, pool_kept=self.file.pool_kept or None)

    def preprocessing(self, dense: DenseFile) -> Preprocessing:
        """As the flags say, else as the file's manifest does.

        Raises:
            InputError: if neither does.
        """
        found = self.file.over(dense.preprocessing, dense.geometry.input_size, dense.path)
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
    output_dense: Path | None,
    json: bool,
) -> None:
    """Slim the dense file at `path` into `output`, and say what came of it.

    Raises:
        SlimdeployError: as `write_slim_file`.
    """
    made, schedule, schedule_path = write_slim_file(path, flags, output, output_dense)
    result = result_of(made, schedule, output, schedule_path)
    show(result, sentences(made, schedule, output), json)


def write_slim_file(
    path: Path, flags: OnnxSlim, output: Path, output_dense: Path | None
) -> tuple[ForwardSlim, KeepSchedule, Path]:
    """Slim the dense file at `path` into `output`; its schedule goes beside it.

    Returns:
        What was made, the schedule, and the file it was written to.

    Raises:
        InputError, GraphError: for what cannot be slimmed; the message says why.
        GateError: if a check fails; nothing is written then.
    """
    request = flags.request()
    schedule_path = flags.output_schedule or output.with_suffix(".json")
    _check_targets(path, output, schedule_path, output_dense)
    dense = open_dense(path, separated(flags.file.outputs))
    require_droppable(dense)
    check_head(dense, flags)
    preprocessing = flags.preprocessing(dense)
    fitted, held_out = _drawn(flags)
    with requires("cpu"):
        import onnxruntime  # noqa: F401
    from slimdeploy.forward.slimming import steps

    weights, data = weights_file(path, schedule_path), fitted.digest()
    settings = settings_of(request, **_identity(dense, preprocessing, weights, data))
    with RunState(work_folder(output), settings) as saved:
        with told_steps("slimming", steps(dense.geometry, request)) as tell:
            made = _slimmed(dense, preprocessing, fitted, held_out, request, saved, tell)
        schedule = schedule_of(dense, request, made, preprocessing, weights, len(fitted), data)
        write_files(made, schedule, preprocessing, path, output, schedule_path, output_dense)
    return made, schedule, schedule_path


def _identity(
    dense: DenseFile, preprocessing: Preprocessing, weights: WeightsFile, data: str
) -> dict[str, object]:
    """What the search sees besides the request."""
    return {
        "model": weights.sha256,
        "outputs": list(dense.geometry.outputs),
        "preprocessing": preprocessing.model_dump(mode="json"),
        "data": data,
        "slimdeploy": __version__,
    }


def _check_targets(path: Path, output: Path, schedule: Path, output_dense: Path | None) -> None:
    """Fail now if a file could not be written, or would replace another of this command's."""
    models = [output, *([output_dense] if output_dense else [])]
    for flag, model in zip(("--output", "--output-checkpoint"), models, strict=False):
        check_suffix(flag, model, ".onnx")
    check_suffix("--output-schedule", schedule, ".json")
    targets = [schedule, *(name for model in models for name in (model, manifest_path(model)))]
    for index, target in enumerate(targets):
        check_writable(target, path, manifest_path(path), *targets[:index])
        check_weights_safe(target, path)


def _drawn(flags: OnnxSlim) -> tuple[ImageFolder, ImageFolder]:
    """The images to fit to, and others to measure the result.

    Where there are enough for both, those to fit to are the ones that `--model` would take.
    """
    folder = open_images(flags.data_dir, flags.split, "train", labelled=False)
    whole = folder.sample(flags.images + flags.images // _PER_HELD_OUT, flags.seed)
    fitted = folder.sample(len(whole) - len(whole) // (_PER_HELD_OUT + 1), flags.seed)
    held_out = whole.without(fitted)
    if len(fitted) < flags.images:
        note(
            f"{folder.root}: {len(folder)} images there; fitted to {len(fitted)} of the "
            f"{flags.images} asked for, {len(held_out.files)} measure the result"
        )
    elif not held_out.files:
        note(f"--images {flags.images}: too few to hold one out to measure the result")
    return fitted, held_out


def _slimmed(
    dense: DenseFile,
    preprocessing: Preprocessing,
    fitted: ImageFolder,
    held_out: ImageFolder,
    request: ForwardRequest,
    saved: RunState,
    tell: Progress,
) -> ForwardSlim:
    from slimdeploy.forward.dynamic import slim_dynamic
    from slimdeploy.forward.slimming import slim_forward
    from slimdeploy.store import open_store

    make = slim_forward if request.scorer is None else slim_dynamic
    with open_store() as store:
        return make(
            dense.model,
            dense.geometry,
            load_arrays(fitted, preprocessing, store),
            request,
            held_out=load_arrays(held_out, preprocessing, store) if held_out.files else None,
            source=str(dense.path),
            saved=saved,
            progress=tell,
        )


def check_head(dense: DenseFile, flags: OnnxSlim) -> None:
    """Refuse a head that cannot do with the tokens that are kept, or be ranked as asked.

    Raises:
        InputError: with the flag that would change that, if there is one.
    """
    if flags.dynamic is None:
        _check_pooling(dense, flags)
        require_readers(flags.impact or DEFAULT_IMPACT, dense.geometry)
        return
    from slimdeploy.forward.dynamic import require_single_reads

    require_single_reads(dense.geometry, str(dense.path))


def _check_pooling(dense: DenseFile, flags: OnnxSlim) -> None:
    """Refuse to change the function of a pooling head unasked.

    Raises:
        InputError: with the flag that asks for it.
    """
    pooled = dense.geometry.head_pools
    if pooled and not flags.file.pool_kept:
        raise InputError(
            f"{dense.path}: its head pools over {len(pooled)} tokens; --pool-kept lets it pool "
            "over those that are kept, which is another function: evaluate it"
        )
