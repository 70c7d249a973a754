"""A study at work: the dense model, the test images, and what models make of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimdeploy.images import ImageFolder
from slimdeploy.slim.accuracy import torch_logits
from slimdeploy.slim.options import AmpDtype
from slimdeploy.slim.timm_models import describe, load_model
from tools.accuracy_studies import Study
from tools.hits import packed

WORK = Path("build/accuracy")


@dataclass
class Bench:
    """A study at work: its dense model, its test images, and what the dense model says of them."""

    name: str
    study: Study
    test_images: int
    amp: AmpDtype
    device: str = "cpu"

    def __post_init__(self) -> None:
        study = self.study
        self.model, self.preprocessing = load_model(study.model, study.checkpoint, study.kwargs)
        self.geometry = describe(self.model, study.model, study.kwargs)
        test = ImageFolder.open(study.data, "test")
        self.test = test.sample(min(self.test_images, len(test)), seed=0)
        self.labels = np.array(self.test.labels)
        self.dense = self.predictions(self.model, f"dense-{len(self.test)}-{self.amp}")

    def predictions(self, model: Any, name: str) -> NDArray[np.int64]:
        """Predicted classes of the test images, [n]; kept by name."""
        kept = WORK / self.name / f"{name}.npy"
        if kept.is_file():
            return np.asarray(np.load(kept))
        judged = copy.deepcopy(model).to(self.device)
        found = [
            torch_logits(judged, batch.images, self.device, 64, self.amp).argmax(1)
            for batch in self.test.batches(self.preprocessing, 64)
        ]
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, np.concatenate(found))
        return np.concatenate(found)

    def judge(self, slim: Any, name: str) -> dict[str, Any]:
        """Which of the `n` test images it gets right and of which it says what dense says."""
        found = self.predictions(slim.eval(), f"{name}-{len(self.test)}-{self.amp}")
        right, agrees = found == self.labels, found == self.dense
        return {
            "n": len(right),
            "top1": float(right.mean()),
            "agreement": float(agrees.mean()),
            "right": packed(right),
            "agrees": packed(agrees),
        }
