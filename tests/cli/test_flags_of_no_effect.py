"""A flag that would do nothing is refused, and a refusal names what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.resnet import resnet18
from timm.models.vision_transformer_relpos import VisionTransformerRelPos

from slimdeploy.cli import main
from slimdeploy.errors import InputError
from slimdeploy.slim.timm_models import check_supported
from tests.cli.commands import error_line, left


def test_classes_that_the_checkpoint_does_not_have(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--model", "test_vit", "--checkpoint", checkpoint]
    output = ["--output", tmp_path / "s.json"]
    line = error_line(capsys, 2, *words, "--num-classes", 7, *output)
    assert f"--num-classes 7: {checkpoint} has 2; leave it out" in line
    assert not left(tmp_path)
    main([str(word) for word in (*words, "--num-classes", 2, *output)])
    assert left(tmp_path) == {"s.json"}


@pytest.mark.parametrize("shape", ["geometric", "auto"])
@pytest.mark.parametrize("reconstruct", ["gradient", "none"])
def test_a_ridge_without_a_refit(
    reconstruct: str, shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["slim", "--model", "test_vit", "--data-dir", "absent", "--mac-reduction", 0.4]
    how = ["--shape", shape, "--reconstruct", reconstruct, "--ridge", 5]
    said = f"--ridge: goes with --reconstruct refit, not {reconstruct}"
    assert said in error_line(capsys, 2, *words, *how)


@pytest.mark.parametrize("kind", [Beit, Eva, VisionTransformerRelPos, NaFlexVit])
def test_what_can_be_slimmed_as_a_file_is_told_so(kind: Any) -> None:
    size = {} if kind is NaFlexVit else {"img_size": 32}
    model = kind(**size, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(InputError, match=r"give the file: slim --onnx FILE, or plan --onnx FILE"):
        check_supported(model, "it")


def test_what_cannot_is_not() -> None:
    with pytest.raises(InputError) as caught:
        check_supported(resnet18(), "it")
    assert str(caught.value) == "--model it: is a ResNet, not a plain vision transformer"
