"""`slimdeploy evaluate`: accuracy of artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from slimdeploy.cli.common import check_weights_safe, open_images, show
from slimdeploy.cli.image_size import channels_first, taken_size
from slimdeploy.cli.numbers import Count, Limit, OptionalCount
from slimdeploy.cli.preprocessing import Pixels
from slimdeploy.console import note, progress_bar
from slimdeploy.engine import PLANS
from slimdeploy.engine.sessions import Provider
from slimdeploy.errors import GateError, InputError
from slimdeploy.manifest import manifest_path, verify_manifest
from slimdeploy.report.tables import accuracy_table

if TYPE_CHECKING:
    from slimdeploy.images import ImageFolder
    from slimdeploy.measure.accuracy import Accuracy
    from slimdeploy.preprocessing import Preprocessing


def evaluate(
    artifact: Path,
    *,
    data_dir: Path,
    split: str | None = None,
    dense: Path | None = None,
    batch_size: Count = 32,
    max_top1_drop: Limit = None,
    threads: OptionalCount = None,
    predictions: Path | None = None,
    provider: Provider = "cpu",
    pixels: Annotated[Pixels, Parameter(name="*", group="What an image goes through")] = Pixels(),  # noqa: B008 (frozen)
    json: bool = False,
) -> None:
    """Top-1 accuracy on an image folder, through the preprocessing the artifact was made with.

    Beside it: whether the model is right as often as it says (expected calibration error), and with
    --dense what slimming changed, image by image, with intervals. Images that the search looked at
    are counted ("images_seen"; null if the schedule behind the file is not found), and a note says
    so: on them a slim model looks better than it is.

    Args:
        artifact: an ONNX file or an engine. Its manifest records the preprocessing; for a file of
            your own, give --mean and --std.
        data_dir: labelled images: an image folder, or one with train/val/test inside.
        split: split of the data (test if there is one).
        dense: the dense model's file, to compare with image by image. Where none is recorded for
            it, its images go through the same preprocessing, and they do with --mean and --std.
        batch_size: images a call.
        max_top1_drop: fail (exit 1) if top-1 is more points below that of --dense, as 0.5.
        threads: of the runtime (default: its own choice).
        predictions: write every image's label and logits to this file, .npz or .csv.
        provider: what ONNX Runtime runs .onnx files on, with no fallback to another.
        json: print the result as JSON.
    """
    from slimdeploy.measure.accuracy import compare_accuracy
    from slimdeploy.measure.predictions import check_predictions, write_predictions
    from slimdeploy.measure.stats import points_lost

    if max_top1_drop is not None and dense is None:
        raise InputError("--max-top1-drop: give --dense, the model it is measured against")
    models = [path for path in (artifact, dense) if path is not None]
    for path in models:
        if not path.is_file():
            raise InputError(f"{path}: no such file; give the path of a model or an engine")
        if path.suffix not in (".onnx", *PLANS):
            raise InputError(
                f"{path}: not an .onnx or a .plan file; `export` writes one from weights and a "
                "schedule"
            )
    pixels.check()
    if predictions is not None:
        check_predictions(predictions, *models, *map(manifest_path, models))
        for model in models:
            check_weights_safe(predictions, model)
    folder = open_images(data_dir, split, "test")
    preprocessing = preprocessing_of(artifact, pixels)
    seen = _seen(artifact, folder)
    found = measure(artifact, folder, preprocessing, batch_size, threads, provider)
    if dense is None:
        if predictions is not None:
            write_predictions(predictions, found)
        show({**found.to_json(), "images_seen": seen}, accuracy_table(found), json)
        return
    other = preprocessing_of(dense, pixels, preprocessing)
    if other != preprocessing:
        note(
            f"{dense}: its manifest records other preprocessing than {artifact}'s; each has its own"
        )
        preprocessing = other
    reference = measure(dense, folder, preprocessing, batch_size, threads, provider)
    compared = compare_accuracy(reference, found)
    if predictions is not None:
        write_predictions(predictions, found, reference)
    sides = {"dense": reference.to_json(), "slim": found.to_json()}
    table = accuracy_table(reference, found, compared)
    show({**sides, "comparison": compared.to_json(), "images_seen": seen}, table, json)
    drop = points_lost(compared.difference)
    if max_top1_drop is not None and drop > max_top1_drop:
        raise GateError(
            f"{artifact}: top-1 is {drop:.2f} points below {dense}, allowed {max_top1_drop}"
        )


def _seen(artifact: Path, folder: ImageFolder) -> int | None:
    """How many of the images the search looked at, None if nothing tells; a word if any."""
    from slimdeploy.measure.seen import images_seen

    found = images_seen(artifact, folder)
    if found is None:
        return None
    seen, schedule = found
    if seen:
        note(
            f"{folder.root}: {schedule} was searched on {seen} of these {len(folder)} images, so "
            "that the model looks better here than it is; judge it on others: keep a test/ folder"
        )
    return seen


def preprocessing_of(
    artifact: Path, pixels: Pixels, otherwise: Preprocessing | None = None
) -> Preprocessing:
    """What the flags say, else the manifest of `artifact`, else `otherwise`.

    Raises:
        InputError: if nothing does.
        GateError: if the manifest is for another file.
    """
    has_manifest = manifest_path(artifact).is_file() or artifact.suffix != ".onnx"
    recorded = verify_manifest(artifact).preprocessing if has_manifest else None
    if pixels.mean is not None:
        size = recorded.input_size if recorded else channels_first(_size(artifact))
        recorded = pixels.over(recorded, size, artifact)
    found = recorded or otherwise
    if found is None:
        what = "its manifest records no" if has_manifest else "no manifest beside it records its"
        raise InputError(f"{artifact}: {what} preprocessing; give --mean and --std")
    return found


def _size(artifact: Path) -> tuple[int, int, int]:
    from slimdeploy.measure.onnx_file import load_structure

    return taken_size(load_structure(artifact), artifact)


def measure(
    artifact: Path,
    folder: ImageFolder,
    preprocessing: Preprocessing,
    batch_size: int,
    threads: int | None,
    provider: Provider = "cpu",
) -> Accuracy:
    """Accuracy of one artifact, with a progress bar."""
    from slimdeploy.engine import open_engine
    from slimdeploy.measure import accuracy

    with open_engine(artifact, provider, threads) as engine, progress_bar() as progress:
        bar = progress.add_task(f"evaluating {artifact.name}", total=len(folder))
        return accuracy.evaluate(
            engine,
            folder,
            preprocessing,
            batch_size,
            lambda done, total: progress.update(bar, completed=done),
        )
