"""The page on doubted labels is what the records say, and its shares add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tools.label_doubt import figures, main

PAGE = Path("docs/bench/label_doubt.md")
DATA = Path("build/elpv")


def test_shares_of_a_row_by_hand() -> None:
    right = np.array([1.0, 0.0, 0.5, 1.0])
    sure = np.array([True, True, False, False])
    defective = np.array([True, False, True, False])
    found = figures(right, sure, defective)
    assert found == ["62.5 %", "50.0 %", "75.0 %", "25.0 %", "50.0 %"]


@pytest.mark.skipif(not (DATA / "labels.csv").is_file(), reason="needs `make data`")
def test_the_page_is_of_these_records(tmp_path: Path) -> None:
    main(output=tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == PAGE.read_text()
