"""The pixels a model sees are exactly those timm's evaluation transform makes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm import create_model
from timm.data import create_transform, resolve_data_config

from slimdeploy.errors import InputError
from slimdeploy.preprocessing import Preprocessing

IMAGENET = Preprocessing(
    input_size=(3, 32, 32),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bicubic",
    crop_pct=0.9,
)


def noise(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def timm_says(image: Image.Image, chosen: Preprocessing) -> np.ndarray:
    transform = create_transform(
        input_size=chosen.input_size,
        is_training=False,
        mean=chosen.mean,
        std=chosen.std,
        interpolation=chosen.interpolation,
        crop_pct=chosen.crop_pct,
        crop_mode=chosen.crop_mode,
    )
    return transform(image.convert("RGB")).numpy()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA", "CMYK", "1"])
@pytest.mark.parametrize("size", [(300, 300), (40, 91), (91, 40), (17, 16)])
def test_equals_timm_for_every_kind_of_image(mode: str, size: tuple[int, int]) -> None:
    image = noise(mode, size)
    ours = IMAGENET.apply(image)
    assert ours.shape == (3, 32, 32)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, timm_says(image, IMAGENET), rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(5, 90), st.integers(5, 90)),
    target=st.tuples(st.just(3), st.integers(5, 40), st.integers(5, 40)),
    crop_pct=st.sampled_from([0.875, 0.9, 0.95, 1.0]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "lanczos"]),
)
def test_equals_timm_for_any_size(
    size: tuple[int, int], target: tuple[int, int, int], crop_pct: float, interpolation: str
) -> None:
    change = {"input_size": target, "crop_pct": crop_pct, "interpolation": interpolation}
    chosen = Preprocessing.parse(IMAGENET.model_dump() | change)
    image = noise("RGB", size)
    np.testing.assert_allclose(chosen.apply(image), timm_says(image, chosen), rtol=0, atol=1e-6)


def test_the_crop_is_what_apply_normalises() -> None:
    plain = {"input_size": (3, 24, 16), "mean": (0, 0, 0), "std": (1, 1, 1)}
    chosen = Preprocessing.parse(IMAGENET.model_dump() | plain)
    image = noise("RGB", (50, 40))
    pixels = np.asarray(chosen.crop(image), np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_array_equal(chosen.apply(image), pixels)


def test_takes_what_timm_resolves() -> None:
    config = resolve_data_config(model=create_model("test_vit"))
    found = Preprocessing.from_timm(config)
    assert found.model_dump() == {key: config[key] for key in found.model_dump()}


def test_nothing_is_assumed() -> None:
    with pytest.raises(InputError, match=r"^the model's preprocessing: std: Field required"):
        Preprocessing.from_timm(IMAGENET.model_dump(exclude={"std"}) | {"fixed_input_size": True})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": [1, 8, 8]}, "input_size: [1, 8, 8] is not 3 channels, height, width"),
        ({"std": [0.2, 0, 0.2]}, "std: [0.2, 0.0, 0.2] must be above 0"),
        ({"crop_pct": 1.5}, "crop_pct: 1.5 is not above 0 and at most 1"),
        ({"crop_mode": "squash"}, "crop_mode: 'squash' is not supported; only 'center' is"),
        ({"interpolation": "box"}, "interpolation: Input should be 'bicubic'"),
        ({"mean": [0.5, 0.5]}, "mean[2]: Field required"),
        ({"mean": [0.5, float("nan"), 0.5]}, "mean[1]: Input should be a finite number"),
        ({"colour": "bgr"}, "colour: Extra inputs are not permitted"),
    ],
)
def test_names_the_field_at_fault(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Preprocessing.parse(IMAGENET.model_dump() | change, "x.json")
    assert str(caught.value).startswith(f"x.json: {message}")
    assert "\n" not in str(caught.value)


def test_refuses_to_clip_a_16_bit_image() -> None:
    deep = Image.fromarray(np.full((9, 9), 40000, np.uint16))
    with pytest.raises(InputError, match="more than 8 bits: convert it to 8 first"):
        IMAGENET.apply(deep)


@pytest.mark.parametrize("field", ["mean", "std"])
def test_numbers_for_pixels_up_to_255_are_refused(field: str) -> None:
    given = IMAGENET.model_dump() | {field: (123.675, 116.28, 103.53)}
    with pytest.raises(InputError, match=f"{field}: .* is for pixels from 0 to 255: divide it"):
        Preprocessing.parse(given)
