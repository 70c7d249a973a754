"""What several verbs share: finding weights and images, and giving results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType

from slimdeploy.console import arguments, give
from slimdeploy.errors import InputError
from slimdeploy.files import check_writable, staged
from slimdeploy.macs import dense_macs, schedule_macs
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.report.tables import schedule_table
from slimdeploy.schedule import KeepSchedule, WeightsFile

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray
    from torch import nn

    from slimdeploy.engine import Engine
    from slimdeploy.images import ImageFolder
    from slimdeploy.store import Store


def open_images(
    data_dir: Path, split: str | None, default: str, *, labelled: bool = True
) -> ImageFolder:
    """The image folder at `data_dir`, or at one of its splits: the asked one, else the default."""
    from slimdeploy.images import ImageFolder, is_split

    if split is None and is_split(data_dir, default):
        split = default
    return ImageFolder.open(data_dir, split, labelled=labelled)


def load_arrays(
    folder: ImageFolder, preprocessing: Preprocessing, store: Store | None = None
) -> NDArray[np.float32]:
    """All images of a folder, preprocessed, [n, 3, H, W]; with a `store`, in its memory.

    Raises:
        InputError: for an image that cannot be read, or a store without room.
    """
    import numpy as np

    shape = (len(folder), *preprocessing.input_size)
    result = store.new(shape, np.float32) if store else np.empty(shape, np.float32)
    start = 0
    for batch in folder.batches(preprocessing, 32):
        result[start : start + len(batch.images)] = batch.images
        start += len(batch.images)
    return result


def weights_file(path: Path, schedule_path: Path, lies_at: Path | None = None) -> WeightsFile:
    """A reference to a weights file, relative to the schedule that will hold it.

    `lies_at` is where the weights are as yet, if not at `path`.
    """
    from slimdeploy.measure.onnx_file import model_digest

    # A link keeps its own name, which tells the kind of file, as what it points to may not.
    lies = path.parent.resolve() / path.name
    relative = os.path.relpath(lies, schedule_path.resolve().parent)
    return WeightsFile(path=Path(relative).as_posix(), sha256=model_digest(lies_at or path))


def write_schedule(
    path: Path,
    weights: Path,
    model: nn.Module | None,
    make: Callable[[WeightsFile | None], KeepSchedule],
    **saved: Any,
) -> KeepSchedule:
    """A schedule and weights that it names: both are written before the first takes its name.

    Args:
        path: the schedule's file.
        weights: the file of weights, if there are any.
        model: whose they are; None if there are none.
        make: the schedule, from the reference to them.
        saved: of `save_weights`.
    """
    with ExitStack() as files:
        schedule_file, named = files.enter_context(staged(path)), None
        if model is not None:
            from slimdeploy.slim.checkpoint import save_weights

            file = files.enter_context(staged(weights))
            save_weights(model, file, **saved)
            named = weights_file(weights, path, file)
        schedule = make(named)
        schedule.write(schedule_file)
    return schedule


def find_weights(
    reference: WeightsFile | None, schedule_path: Path, flag: str = "--checkpoint"
) -> Path | None:
    """The file a schedule names, checked to be the one it was made with; None if it names none.

    `flag` is the option that would replace it.

    Raises:
        InputError: if the file is gone or another one.
    """
    from slimdeploy.measure.onnx_file import model_digest

    if reference is None:
        return None
    path = schedule_path.parent / reference.path
    if not path.is_file():
        raise InputError(
            f"{schedule_path}: names the weights {reference.path}, which are not there; "
            f"give them with {flag}"
        )
    if model_digest(path) != reference.sha256:
        raise InputError(
            f"{path}: is not the file that {schedule_path} was made with (SHA-256 differs); "
            f"give the weights to use with {flag}"
        )
    return path


def require_timm(schedule: KeepSchedule, path: Path, remedy: str) -> None:
    """Refuse a schedule for an ONNX file where only the PyTorch model will do.

    Raises:
        InputError: with the file it is for, and `remedy`.
    """
    if schedule.model.source == "onnx":
        raise InputError(
            f"{path}: model.source: is for the ONNX file {schedule.model.name}; {remedy}"
        )


def dense_weights(schedule: KeepSchedule, path: Path, checkpoint: Path | None) -> Path | None:
    """Weights of the dense model: the given ones, else those the schedule names."""
    return checkpoint or find_weights(schedule.checkpoint, path)


def slim_weights(schedule: KeepSchedule, path: Path, checkpoint: Path | None) -> Path | None:
    """Weights for the slim model: the given ones, else refitted ones, else the dense model's."""
    return (
        checkpoint
        or find_weights(schedule.slim_checkpoint, path)
        or find_weights(schedule.checkpoint, path)
    )


def command_line() -> tuple[str, ...]:
    """The command being run, with the program's bare name: for provenance."""
    return ("slimdeploy", *arguments.get())


def load_onnx(path: Path) -> onnx.ModelProto:
    """An ONNX file's model, with weights that lie beside it.

    Raises:
        InputError: if it is missing, truncated or no ONNX file, or weights lie outside its folder.
    """
    from slimdeploy.graph.files.storage import load_model

    return load_model(path)


def check_suffix(flag: str, path: Path, suffix: str) -> None:
    """Fail if a file would be written whose name says that it is of another kind.

    Raises:
        InputError: naming the flag.
    """
    if path.suffix != suffix:
        article = "an" if suffix == ".onnx" else "a"
        raise InputError(f"{flag} {path}: name {article} {suffix} file")


def check_weights_safe(target: Path, model: Path | None) -> None:
    """Fail if `target` is a file of weights that the ONNX file `model` keeps beside it.

    Raises:
        InputError: naming it; or if `model` cannot be read.
    """
    if model is None or not target.is_file():
        return
    from slimdeploy.graph.files.storage import parse_model
    from slimdeploy.measure.onnx_file import external_files

    check_writable(target, *(model.parent / name for name in external_files(parse_model(model))))


def judged_outputs(engine: Engine) -> list[str]:
    """Names of the outputs that are compared: real numbers for each image.

    A class that is given out as a whole number tells less than what it is the largest of.
    """
    shaped = [info for info in engine.outputs if info.shape]
    return [info.name for info in shaped if "float" in info.dtype] or [x.name for x in shaped]


def onnx_outputs(path: Path, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The judged outputs [n, ...] of an ONNX file, on the CPU, for images [n, C, H, W]."""
    import numpy as np

    from slimdeploy.engine import open_engine
    from slimdeploy.measure.feeding import infer_all

    with open_engine(path) as engine:
        size, names = engine.inputs[0].shape[0] or 16, judged_outputs(engine)
        parts = [infer_all(engine, images[i : i + size]) for i in range(0, len(images), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def onnx_logits(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first of them."""
    return next(iter(onnx_outputs(path, images).values()))


def separated(words: tuple[str, ...]) -> tuple[str, ...]:
    """Names given one by one, or several in a word with commas between."""
    return tuple(name for word in words for name in word.split(",") if name)


def summary(schedule: KeepSchedule) -> dict[str, Any]:
    """What a program wants to know of a schedule."""
    dense, slim = dense_macs(schedule.model).total, schedule_macs(schedule).total
    chosen = {} if schedule.dynamic is None else {"dynamic": schedule.dynamic.scorer}
    return {
        "model": schedule.model.name,
        **chosen,
        "counts": schedule.counts,
        "dense_macs": dense,
        "slim_macs": slim,
        "mac_reduction": 1 - slim / dense,
    }


def summary_table(schedule: KeepSchedule) -> RenderableType:
    """Tokens and MACs per layer, for a person."""
    slim, dense = schedule_macs(schedule), dense_macs(schedule.model)
    table = schedule_table(
        schedule.counts,
        [layer.total for layer in slim.layers],
        schedule.model.tokens,
        [layer.total for layer in dense.layers],
        (slim.total, dense.total),
    )
    if schedule.dynamic is None:
        return table
    if schedule.dynamic.merges:
        return Group(table, "each image merges its most similar patches")
    return Group(table, f"each image chooses its own patches, by {schedule.dynamic.scorer}")


_NATURAL = 10_000
"""Columns; tables take what they need of them."""


def show(result: dict[str, Any], table: RenderableType, as_json: bool) -> None:
    """Give a result on stdout: JSON for programs, a table for people."""
    if as_json:
        give(json.dumps(result, indent=2) + "\n")
    elif isinstance(table, str):
        give(table + "\n")
    else:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_NATURAL)  # in a file or a pipe nothing needs to fit
        with console.capture() as drawn:
            console.print(table)
        give(drawn.get())
