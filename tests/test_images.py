"""A folder of photographs: what is read, in which order, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slimdeploy.errors import InputError
from slimdeploy.images import ImageFolder, is_split, spread
from slimdeploy.preprocessing import Preprocessing

SMALL = Preprocessing(
    input_size=(3, 8, 8), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic", crop_pct=1.0
)


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    """Class folders of flat images; image i of the k-th class has the grey value 20 k + i."""
    for k, (name, count) in enumerate(sorted(counts.items())):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (10, 12), 20 * k + i).save(root / name / f"{i:03}.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", {"dog": 4, "cat": 3, "eel": 10})


def test_classes_and_files_are_sorted(root: Path) -> None:
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "cat" / "._000.png").write_bytes(b"a trace of another system")
    folder = ImageFolder.open(root)
    assert folder.classes == ("cat", "dog", "eel")
    assert folder.labels == (0,) * 3 + (1,) * 4 + (2,) * 10
    assert [file.name for file in folder.files[:3]] == ["000.png", "001.png", "002.png"]


def test_batches_come_in_order_whatever_the_threads(root: Path) -> None:
    folder = ImageFolder.open(root)
    batches = list(folder.batches(SMALL, 4, threads=3))
    assert [len(batch.images) for batch in batches] == [4, 4, 4, 4, 1]
    greys = np.concatenate([batch.images for batch in batches])[:, 0, 0, 0] * 255
    expected = [*range(3), *range(20, 24), *range(40, 50)]
    np.testing.assert_allclose(greys, expected, atol=1e-3)
    labels = np.concatenate([batch.labels for batch in batches])
    assert labels.tolist() == list(folder.labels)


def test_a_sample_is_seeded_nested_and_keeps_shares(root: Path) -> None:
    folder = ImageFolder.open(root)
    small, large = folder.sample(5, seed=3), folder.sample(9, seed=3)
    assert small == folder.sample(5, seed=3)
    assert small != folder.sample(5, seed=4)
    assert set(small.files) < set(large.files)
    assert Counter(folder.sample(8, seed=0).labels) == {0: 1, 1: 2, 2: 5}
    assert folder.sample(100, seed=0) == folder
    assert len(folder.sample(6, seed=1, stratified=False)) == 6
    rest = large.without(small)
    assert len(rest) == len(rest.labels) == 4
    assert {*rest.files} == {*large.files} - {*small.files}


def test_a_sample_does_not_depend_on_where_the_folder_lies(root: Path, tmp_path: Path) -> None:
    before = [f.relative_to(root) for f in ImageFolder.open(root).sample(5, seed=3).files]
    moved = root.rename(tmp_path / "elsewhere")
    after = [f.relative_to(moved) for f in ImageFolder.open(moved).sample(5, seed=3).files]
    assert before == after
    # The same on every machine and with every version of every library.
    assert after[:2] == [Path("cat/001.png"), Path("dog/002.png")]


def test_the_digest_follows_names_and_contents(root: Path) -> None:
    before = ImageFolder.open(root).digest()
    assert before == ImageFolder.open(root).digest()
    file = root / "cat" / "000.png"
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    changed = ImageFolder.open(root).digest()
    file.write_bytes(content)
    file.rename(root / "cat" / "renamed.png")
    renamed = ImageFolder.open(root).digest()
    assert len({before, changed, renamed}) == 3


def test_a_split_is_chosen_or_asked_for(tmp_path: Path) -> None:
    for split in ("train", "test"):
        make_folder(tmp_path / split, {"a": 1, "b": 1})
    assert ImageFolder.open(tmp_path, "test").root == tmp_path / "test"
    with pytest.raises(InputError, match=r"holds the splits test, train; choose one with --split"):
        ImageFolder.open(tmp_path)
    with pytest.raises(InputError, match=r"has no split 'val'; it holds test, train"):
        ImageFolder.open(tmp_path, "val")


def test_refuses_what_is_not_a_folder_of_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent: no such folder; --data-dir names a folder"):
        ImageFolder.open(tmp_path / "absent")
    with pytest.raises(InputError, match=r"two class folders or more .*; found none"):
        ImageFolder.open(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match=r"two class folders or more .*; found only 'cat'"):
        ImageFolder.open(tmp_path)
    make_folder(tmp_path, {"dog": 1})
    with pytest.raises(InputError, match=r"cat: no images in this class folder"):
        ImageFolder.open(tmp_path)


def test_without_labels_one_folder_is_enough(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no images here, nor folders of images"):
        ImageFolder.open(tmp_path, labelled=False)
    make_folder(tmp_path, {"all": 2})
    assert len(ImageFolder.open(tmp_path, labelled=False)) == 2


def test_without_labels_images_beside_folders_count_too(tmp_path: Path) -> None:
    make_folder(tmp_path, {"more": 2, "none": 0})
    Image.new("L", (10, 12)).save(tmp_path / "loose.png")
    folder = ImageFolder.open(tmp_path, labelled=False)
    assert [file.name for file in folder.files] == ["loose.png", "000.png", "001.png"]
    assert folder.labels == (0, 1, 1)


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path) -> None:
    assert not is_split(tmp_path, "train")
    make_folder(tmp_path, {"bus": 1, "train": 2})
    assert not is_split(tmp_path, "train")  # a vehicle
    make_folder(tmp_path / "flat", {"train": 1, "val": 1})
    assert is_split(tmp_path / "flat", "train")
    (tmp_path / "flat" / "annotations").mkdir()
    assert is_split(tmp_path / "flat", "train")
    make_folder(tmp_path / "data" / "train", {"bus": 1, "car": 1})
    make_folder(tmp_path / "data", {"more": 1})
    assert is_split(tmp_path / "data", "train")


def test_names_the_image_that_is_broken(root: Path) -> None:
    file = root / "dog" / "001.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError) as caught:
        list(ImageFolder.open(root).batches(SMALL, 4))
    assert str(caught.value).startswith(f"{file}: cannot be read as an image (")
    file.write_text("hello")
    with pytest.raises(InputError, match=r"001\.png: cannot be read as an image \(cannot identify"):
        list(ImageFolder.open(root).batches(SMALL, 4))


def test_names_the_image_with_too_many_bits(root: Path) -> None:
    Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(root / "cat" / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png: image mode I;16 has more than 8 bits"):
        list(ImageFolder.open(root).batches(SMALL, 4))


def test_a_model_of_other_classes_is_refused(root: Path) -> None:
    folder = ImageFolder.open(root)
    folder.check_classes(3, "m.onnx")
    with pytest.raises(InputError, match=r"3 class folders, but m\.onnx has 1000 outputs"):
        folder.check_classes(1000, "m.onnx")


def test_nothing_is_asked_for(root: Path) -> None:
    folder = ImageFolder.open(root)
    with pytest.raises(InputError, match="a sample of 0 images is empty"):
        folder.sample(0, seed=0)
    with pytest.raises(InputError, match="a batch of 0 images is empty"):
        next(folder.batches(SMALL, 0))


@pytest.mark.parametrize(("total", "n"), [(200, 32), (17, 64), (5, 5), (1, 1), (0, 3), (7, 3)])
def test_a_spread_is_even(total: int, n: int) -> None:
    places = spread(total, n)
    assert len(places) == len(set(places)) == min(total, n)
    assert places[:1] == [0][:total]
    gaps = np.diff([*places, total])
    assert not places or gaps.max() - gaps.min() <= 1


def test_a_spread_of_a_folder_holds_every_class(root: Path) -> None:
    folder = ImageFolder.open(root).spread(6)
    assert Counter(folder.labels) == {0: 2, 1: 1, 2: 3}
    assert len(folder.files) == 6
