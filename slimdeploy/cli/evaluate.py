"""`slimdeploy evaluate`: accuracy of artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy.cli.common import check_weights_safe, open_images, show
from slimdeploy.cli.numbers import Count, Limit, OptionalCount
from slimdeploy.console import progress_bar
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
    json: bool = False,
) -> None:
    """Top-1 accuracy on an image folder, through the preprocessing the artifact was made with.

    Beside it: whether the model is right as often as it says (expected calibration error), and with
    --dense what slimming changed, image by image, with intervals.

    Args:
        artifact: an ONNX file or an engine, with its manifest beside it, which records the
            preprocessing; for a file of your own, `plan --onnx` takes it (--mean and --std).
        data_dir: labelled images: an image folder, or one with train/val/test inside.
        split: split of the data (test if there is one).
        dense: the dense model's file, to compare with image by image. Where none is recorded for
            it, its images go through the same preprocessing.
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
    if predictions is not None:
        check_predictions(predictions, *models, *map(manifest_path, models))
        for model in models:
            check_weights_safe(predictions, model)
    folder = open_images(data_dir, split, "test")
    preprocessing = recorded(artifact)
    found = measure(artifact, folder, preprocessing, batch_size, threads, provider)
    if dense is None:
        if predictions is not None:
            write_predictions(predictions, found)
        show(found.to_json(), accuracy_table(found), json)
        return
    if manifest_path(dense).is_file():
        preprocessing = verify_manifest(dense).preprocessing or preprocessing
    reference = measure(dense, folder, preprocessing, batch_size, threads, provider)
    compared = compare_accuracy(reference, found)
    if predictions is not None:
        write_predictions(predictions, found, reference)
    sides = {"dense": reference.to_json(), "slim": found.to_json()}
    table = accuracy_table(reference, found, compared)
    show({**sides, "comparison": compared.to_json()}, table, json)
    drop = points_lost(compared.difference)
    if max_top1_drop is not None and drop > max_top1_drop:
        raise GateError(
            f"{artifact}: top-1 is {drop:.2f} points below {dense}, allowed {max_top1_drop}"
        )


def recorded(artifact: Path) -> Preprocessing:
    """The preprocessing in the manifest of `artifact`.

    Raises:
        InputError: if there is none.
        GateError: if the manifest is for another file.
    """
    found = verify_manifest(artifact).preprocessing
    if found is None:
        raise InputError(
            f"{artifact}: its manifest records no preprocessing; give plan --onnx --mean and "
            "--std, and export it again with that schedule"
        )
    return found


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
