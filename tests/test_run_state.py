"""What is left of a run that did not end, and who may go on with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimdeploy.run_state import RunState


def test_a_run_of_other_options_is_given_up_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    RunState(folder, {"images": 192}).remember("layer", 7)
    assert RunState(folder, {"images": 192}).recall("layer") == 7
    assert capsys.readouterr().err == ""
    assert RunState(folder, {"images": 64}).recall("layer") is None
    said = capsys.readouterr().err
    assert said == f"{folder}: held an unfinished run of other options or images, now given up\n"
    RunState(folder, {"images": 32})
    assert capsys.readouterr().err == "", "nothing was lost that time"
