"""Accuracy of an engine on a folder of photographs, and of two engines on the same photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimdeploy.engine.protocol import Array, Engine, EngineInfo
from slimdeploy.errors import GateError, InputError
from slimdeploy.images import ImageFolder
from slimdeploy.measure.divergence import confidences, cosines, cross_entropies, kl_divergences
from slimdeploy.measure.feeding import infer_all
from slimdeploy.measure.reliability import (
    CalibrationError,
    calibration_difference,
    calibration_error,
)
from slimdeploy.measure.stats import (
    Interval,
    binomial_standard_error,
    gain_interval,
    mcnemar_exact,
    mean_interval,
    wilson_interval,
)
from slimdeploy.preprocessing import Preprocessing

Progress = Callable[[int, int], None]

_LARGEST_CONFUSION = 50  # classes; beyond this the table would swamp a JSON record


@dataclass(frozen=True, eq=False)
class Accuracy:
    """How often an engine is right.

    Attributes:
        engine: what ran.
        preprocessing: what was done to the images.
        classes: names, in the order of the model's outputs.
        n: images.
        top1: share of images whose largest output is the label's.
        top1_standard_error: binomial.
        top1_interval: Wilson's 95 % interval.
        top5: share of images whose label is among the five largest; None below 5 classes.
        cross_entropy: mean, in nats, of the softmax over the outputs.
        calibration_errors: expected calibration error with bins of equal width and of equal mass.
        recall: per class, share of its images that are found; None for a class without images.
        confusion: int64 [classes, classes]: row is the label, column the prediction.
        labels: int64 [n].
        predictions: int64 [n], kept so that two engines can be compared image by image.
        logits: the outputs, float32 [n, classes].
        files: the images' names, in the same order.
    """

    engine: EngineInfo
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    n: int
    top1: float
    top1_standard_error: float
    top1_interval: Interval
    top5: float | None
    cross_entropy: float
    calibration_errors: tuple[CalibrationError, CalibrationError]
    recall: tuple[float | None, ...]
    confusion: NDArray[np.int64]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    logits: NDArray[np.float32]
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain record, without the single images; confusion up to 50 classes."""
        few = len(self.classes) <= _LARGEST_CONFUSION
        return {
            "engine": self.engine.to_json(),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "n": self.n,
            "top1": self.top1,
            "top1_standard_error": self.top1_standard_error,
            "top1_interval": asdict(self.top1_interval),
            "top5": self.top5,
            "cross_entropy": self.cross_entropy,
            "calibration_errors": {x.binning: x.to_json() for x in self.calibration_errors},
            "recall": dict(zip(self.classes, self.recall, strict=True)),
            "confusion": self.confusion.tolist() if few else None,
        }


@dataclass(frozen=True)
class AccuracyComparison:
    """Two engines on the same images.

    Attributes:
        n: images.
        difference: slim top-1 minus dense top-1.
        difference_interval: Tango's 95 % score interval of paired proportions.
        agreement: share of images for which both predict the same class.
        only_dense_right: images that only the dense engine gets right.
        only_slim_right: images that only the slim engine gets right.
        mcnemar_p: exact two-sided p-value that both err equally often.
        kl_divergence: mean KL(dense || slim) of the softmax outputs, in nats.
        kl_interval: its 95 % interval, bootstrap over images.
        logit_cosine: mean cosine between the two engines' outputs.
        calibration_difference: slim calibration error minus dense, bins of equal mass.
        calibration_interval: its 95 % interval, paired basic bootstrap over images.
    """

    n: int
    difference: float
    difference_interval: Interval
    agreement: float
    only_dense_right: int
    only_slim_right: int
    mcnemar_p: float
    kl_divergence: float
    kl_interval: Interval
    logit_cosine: float
    calibration_difference: float
    calibration_interval: Interval

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)


def evaluate(
    engine: Engine,
    folder: ImageFolder,
    preprocessing: Preprocessing,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Accuracy:
    """Classify every image of `folder` and count.

    An engine whose batch is fixed is fed full batches, the last one filled up with repeats that
    are not counted.

    Args:
        engine: one input of images, one output of [batch, classes] (the first, if several).
        folder: the labelled images.
        preprocessing: the model's own.
        batch_size: images a call, unless the engine fixes it.
        progress: called with the images done and the images in all.

    Raises:
        InputError: if an image cannot be read, or classes, shapes or types do not fit.
        GateError: if the engine answers with NaN or infinity.
    """
    batch_size = engine.inputs[0].shape[0] or batch_size
    logits: list[NDArray[np.float32]] = []
    done = 0
    for batch in folder.batches(preprocessing, batch_size):
        answer = _classify(engine, batch.images)
        if not logits:
            folder.check_classes(answer.shape[1], engine.describe().artifact)
        if (bad := np.flatnonzero(~np.isfinite(answer).all(axis=1))).size:
            name, file = engine.describe().artifact, folder.files[done + int(bad[0])]
            raise GateError(f"{name}: NaN or infinity among the outputs for {file}")
        logits.append(answer)
        done += len(answer)
        if progress is not None:
            progress(done, len(folder))
    return count(engine.describe(), folder, preprocessing, np.concatenate(logits))


def count(
    engine: EngineInfo,
    folder: ImageFolder,
    preprocessing: Preprocessing,
    logits: NDArray[np.float32],
) -> Accuracy:
    """Turn the outputs for `folder`'s images, [n, classes], into an `Accuracy`."""
    labels = np.array(folder.labels, np.int64)
    predictions = logits.argmax(axis=1).astype(np.int64)
    classes, n = len(folder.classes), len(labels)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    right, sure = int(confusion.trace()), confidences(logits)
    return Accuracy(
        engine=engine,
        preprocessing=preprocessing,
        classes=folder.classes,
        n=n,
        top1=right / n,
        top1_standard_error=binomial_standard_error(right, n),
        top1_interval=wilson_interval(right, n),
        top5=_top5(logits, labels) if classes >= 5 else None,
        cross_entropy=float(cross_entropies(logits, labels).mean()),
        calibration_errors=(
            calibration_error(sure, predictions == labels, "equal-width"),
            calibration_error(sure, predictions == labels, "equal-mass"),
        ),
        recall=_recall(confusion),
        confusion=confusion,
        labels=labels,
        predictions=predictions,
        logits=logits,
        files=tuple(file.relative_to(folder.root).as_posix() for file in folder.files),
    )


def compare_accuracy(dense: Accuracy, slim: Accuracy, seed: int = 0) -> AccuracyComparison:
    """What slimming cost, image by image.

    Raises:
        InputError: if the two were not measured on the same images and classes.
    """
    if dense.files != slim.files or dense.classes != slim.classes:
        raise InputError(
            f"{dense.engine.artifact} and {slim.engine.artifact} were evaluated on different "
            "images: evaluate both on the same --data-dir"
        )
    dense_right = dense.predictions == dense.labels
    slim_right = slim.predictions == slim.labels
    gain = slim_right.astype(np.float64) - dense_right
    only_dense, only_slim = int((gain < 0).sum()), int((gain > 0).sum())
    divergence = kl_divergences(dense.logits, slim.logits)
    calibration = calibration_difference(
        (confidences(dense.logits), dense_right),
        (confidences(slim.logits), slim_right),
        "equal-mass",
        seed,
    )
    return AccuracyComparison(
        n=dense.n,
        difference=float(gain.mean()),
        difference_interval=gain_interval(gain, seed),
        agreement=float((dense.predictions == slim.predictions).mean()),
        only_dense_right=only_dense,
        only_slim_right=only_slim,
        mcnemar_p=mcnemar_exact(only_dense, only_slim),
        kl_divergence=float(divergence.mean()),
        kl_interval=mean_interval(divergence, seed),
        logit_cosine=float(cosines(dense.logits, slim.logits).mean()),
        calibration_difference=calibration[0],
        calibration_interval=calibration[1],
    )


def _classify(engine: Engine, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs, [n, classes], for up to a batch of images: the first of that form."""
    scores = [x for x in engine.outputs if "float" in x.dtype and len(x.shape) == 2]
    first = (scores or engine.outputs)[0].name
    answer: Array = infer_all(engine, images)[first]
    if answer.ndim != 2:
        name = engine.describe().artifact
        raise InputError(
            f"{name}: output '{first}' has shape {list(answer.shape)}; a classifier's is "
            "[batch, classes], and no other output is one"
        )
    return answer.astype(np.float32)


def _top5(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    largest = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    return float((largest == labels[:, None]).any(axis=1).mean())


def _recall(confusion: NDArray[np.int64]) -> tuple[float | None, ...]:
    totals = confusion.sum(axis=1)
    return tuple(
        int(found) / int(total) if total else None
        for found, total in zip(confusion.diagonal(), totals, strict=True)
    )
