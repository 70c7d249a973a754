"""The list of drawn images: the same again from the same files, and from no others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calibration.draw import Drawn, list_images, make
from slimdeploy.errors import GateError, InputError
from slimdeploy.graph.files.storage import save_model
from slimdeploy.images import ImageFolder
from slimdeploy.manifest import write_manifest
from slimdeploy.precision.calibration import open_calibration
from slimdeploy.preprocessing import Preprocessing
from tests.graph.text import model

PIXELS = Preprocessing(
    input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0
)


@pytest.fixture
def listed(tmp_path: Path, photographs: Path) -> Path:
    path = tmp_path / "m.onnx"
    save_model(model("float[B,3,32,32] x => float[B,3,32,32] y", "y = Tanh(x)"), path)
    write_manifest(path, kind="onnx", made_from={}, command=(), preprocessing=PIXELS)
    list_images(data_dir=photographs, model=path, output=tmp_path / "l.json", images=6, seed=3)
    return tmp_path / "l.json"


def test_the_listed_images_are_the_drawn_ones(listed: Path, photographs: Path) -> None:
    drawn = Drawn.read(listed)
    sample = ImageFolder.open(photographs, "train").sample(6, 3)
    assert len(drawn.files) == 6
    assert [name.split("/")[0] for name in drawn.files].count("dark") == 3
    make(listed, data_dir=photographs, output=listed.with_name("c.npz"))
    from_list = open_calibration(listed.with_name("c.npz"), (3, 32, 32), None, images=1, seed=0)
    batch = next(sample.batches(PIXELS, 6)).images
    assert np.abs(next(iter(from_list.batches(6))) - batch).max() < 2**-11
    assert from_list.described.count == 6


def test_another_image_under_the_same_name_is_refused(listed: Path, photographs: Path) -> None:
    data = json.loads(listed.read_text())
    name = next(iter(data["files"]))
    data["files"][name] = "0" * 64
    listed.write_text(json.dumps(data))
    out = listed.with_name("c.npz")
    with pytest.raises(GateError, match="is not the image that"):
        make(listed, data_dir=photographs, output=out)
    assert not out.exists()
    with pytest.raises(InputError, match="--images 9"):
        make(listed, data_dir=photographs, output=out, images=9)
    listed.write_text("{}")
    with pytest.raises(InputError, match="not a calibration list"):
        make(listed, data_dir=photographs, output=out)


def test_the_committed_list_is_whole() -> None:
    drawn = Drawn.read(Path("calibration/elpv.json"))
    assert len(drawn.files) == 128
    assert drawn.preprocessing.input_size == (3, 224, 224)
