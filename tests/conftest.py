"""Models and images that the tests share: small, random, and nowhere degenerate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from slimdeploy.schedule import KeepSchedule, Layer, ModelGeometry, Provenance

# A loaded machine is slow, not wrong.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork run first: once this process has computed a gradient, its children cannot."""
    items.sort(key=lambda item: item.get_closest_marker("forks") is None)


@pytest.fixture(autouse=True)
def no_progress_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which steps take long depends on the machine: what is said on stderr must not."""
    monkeypatch.setattr("slimdeploy.console.SECONDS_BETWEEN_LINES", float("inf"))


def geometry(**changes: Any) -> ModelGeometry:
    """A small model's geometry: 4x4 patches and a class token, 4 layers."""
    fields: dict[str, Any] = {
        "name": "small",
        "input_size": (3, 64, 64),
        "patch_size": (16, 16),
        "grid": (4, 4),
        "prefix": ("class",),
        "depth": 4,
        "width": 48,
        "heads": 3,
        "mlp_width": 96,
        "num_classes": 5,
        "head_reads": (0,),
    }
    return ModelGeometry(**{**fields, **changes})


def schedule(keep: list[list[int]], **changes: Any) -> KeepSchedule:
    """A schedule for `geometry()`."""
    return KeepSchedule(
        model=geometry(**changes),
        layers=tuple(Layer(keep=tuple(ids)) for ids in keep),
        provenance=Provenance(slimdeploy="test"),
    )


def randomise(model: Any, seed: int = 0) -> Any:
    """Give every parameter its own values: equal ones hide errors, and exporters merge them."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + noise * (0.2 if parameter.ndim <= 1 else 0.12))
    return model.eval()


@pytest.fixture
def make_vit() -> Callable[..., Any]:
    """A factory of small random timm ViTs: 64 pixels, 16 patches, depth 4, 5 classes."""

    def make(distilled: bool = False, seed: int = 0, **kwargs: Any) -> Any:
        import timm.layers
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.vision_transformer import VisionTransformer

        fields = {
            "img_size": 64,
            "patch_size": 16,
            "embed_dim": 48,
            "depth": 4,
            "num_heads": 3,
            "mlp_ratio": 2,
            "num_classes": 5,
        }
        timm.layers.set_fused_attn(True)  # whatever a test before asked of the whole process
        kind = VisionTransformerDistilled if distilled else VisionTransformer
        model = kind(**{**fields, **kwargs})
        model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        return randomise(model, seed)

    return make


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with train and test splits, two classes told apart by a bright square."""
    root, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 8)):
        for label in ("dark", "bright"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 120, (48, 48, 3), dtype=np.uint8)
                if label == "bright":
                    pixels[12:36, 12:36] += 120
                Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of timm's `test_vit` (160 pixels, 100 patches, depth 6) with two classes."""
    import timm

    from slimdeploy.preprocessing import Preprocessing
    from slimdeploy.slim.checkpoint import save_weights

    model = randomise(timm.create_model("test_vit", num_classes=2))
    path = tmp_path_factory.mktemp("weights") / "dense.safetensors"
    preprocessing = Preprocessing(
        input_size=(3, 160, 160),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="center",
    )
    save_weights(model, path, name="test_vit", preprocessing=preprocessing)
    return path
