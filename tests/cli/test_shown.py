"""What verbs show: tables keep every digit, in a pipe and on a narrow terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console, RenderableType

from slimdeploy.cli.common import show
from slimdeploy.report.front_table import front_table
from slimdeploy.report.tables import accuracy_table
from tests.measure.test_accuracy import accuracy_of
from tests.report.test_front import groups

LONG = "a-model-whose-name-is-longer-than-many-a-terminal-is-wide-" + "x" * 60 + ".onnx"
DENSE = accuracy_of(np.eye(2, dtype=np.float32)[[0] * 5 + [1] * 5], [0] * 5 + [1] * 5)
DENSE = replace(DENSE, engine=replace(DENSE.engine, artifact=LONG))
NUMBERS = ("100.00%", "72.25% to 100.00%", "0.3133")


def narrow(table: RenderableType, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as drawn:
        console.print(table)
    return drawn.get()


def test_a_pipe_gets_the_table_at_its_natural_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    show({}, accuracy_table(DENSE), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(LONG) and all(n in line for n in NUMBERS) for line in lines)
    assert max(map(len, lines)) < 400


def test_on_a_terminal_the_name_folds_and_numbers_stay_whole() -> None:
    text = narrow(accuracy_table(DENSE), 80)
    assert all(number in text for number in NUMBERS)
    assert "…" not in text
    assert "".join(line.split(" ")[0] for line in text.splitlines()).count(LONG) >= 1


def test_a_front_on_a_terminal_keeps_its_numbers() -> None:
    found = groups(["class-attention"], [0.6], batches=(1,))
    text = narrow(front_table(found, DENSE, 10**9, None), 80)
    assert "…" not in text
    assert "2.50x (2.40 to 2.60)" in text
