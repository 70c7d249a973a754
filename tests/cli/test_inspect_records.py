"""`inspect` of records that were damaged since they were written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import error_line

FILES = '"files": {"slim": {"path": "s"}, "dense": {"path": "d"}}, "passed": true, "problem": null'

DAMAGED = [
    f'{{"kind": "verification", {FILES}, "results": [], "notes": []}}',
    f'{{"kind": "verification", {FILES}, "results": {{"a": {{"outputs": 1}}}}, "notes": []}}',
    '{"kind": "verification", "files": []}',
    f'{{"kind": "sweep", "dense": {{"top1": 1{"0" * 400}, "gmac": 1}}, "test": {{"images": 1}}}}',
]


@pytest.mark.parametrize("text", DAMAGED, ids=["no results", "no outputs", "no files", "too large"])
def test_a_damaged_record_is_one_line(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    assert f"{path}: a damaged record of kind '" in error_line(capsys, 2, "inspect", path)


def test_a_file_of_brackets_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    path.write_text("[" * 100_000)
    line = error_line(capsys, 2, "inspect", path)
    assert f"{path}: no record of slimdeploy: it is nested too deeply" in line
