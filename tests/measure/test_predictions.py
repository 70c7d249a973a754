"""Files of predictions read back to the same numbers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from slimdeploy.errors import InputError
from slimdeploy.measure.predictions import check_predictions, write_predictions
from tests.measure.test_accuracy import accuracy_of

LABELS = [0, 1, 1, 2]


def logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 9, (4, 3)).astype(np.float32)


def test_an_archive_holds_what_the_counts_were_made_of(tmp_path: Path) -> None:
    found, dense = accuracy_of(logits(0), LABELS), accuracy_of(logits(1), LABELS)
    write_predictions(tmp_path / "p.npz", found, dense)
    with np.load(tmp_path / "p.npz") as held:
        assert held["files"].tolist() == list(found.files)
        assert held["classes"].tolist() == ["0", "1", "2"]
        assert float((held["logits"].argmax(1) == held["labels"]).mean()) == found.top1
        assert np.array_equal(held["dense_logits"], dense.logits)


def test_a_table_reads_back_exactly(tmp_path: Path) -> None:
    found = accuracy_of(logits(0), LABELS)
    write_predictions(tmp_path / "p.csv", found)
    rows = list(csv.reader((tmp_path / "p.csv").open()))
    assert rows[0] == ["file", "label", "logits:0", "logits:1", "logits:2"]
    assert [row[0] for row in rows[1:]] == list(found.files)
    assert [row[1] for row in rows[1:]] == [str(label) for label in LABELS]
    again = np.array([row[2:] for row in rows[1:]], np.float64).astype(np.float32)
    assert np.array_equal(again, found.logits)
    write_predictions(tmp_path / "p.csv", found, found)
    assert len(next(csv.reader((tmp_path / "p.csv").open()))) == 8


def test_what_is_read_is_not_overwritten(tmp_path: Path) -> None:
    model = tmp_path / "m.csv"
    model.write_bytes(b"a model")
    with pytest.raises(InputError, match="is another file that this command"):
        check_predictions(model, None, model)
    with pytest.raises(InputError, match=r"name a file that ends in \.npz or \.csv"):
        check_predictions(tmp_path / "p.json")
    assert {path.name for path in tmp_path.iterdir()} == {"m.csv"}
