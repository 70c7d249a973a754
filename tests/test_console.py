"""Progress where there is no terminal: a line every now and then."""

from __future__ import annotations

import pytest

from slimdeploy import console


def test_progress_is_told_in_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 8))
    monkeypatch.setattr(console, "monotonic", lambda: next(clock))
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 20.0)
    with console.progress_bar() as progress:
        bar = progress.add_task("counting", total=9)
        for _ in range(4):
            progress.advance(bar)
        progress.update(bar, completed=9)
    shown = capsys.readouterr()
    assert shown.err.splitlines()[0] == "counting: 3 of 9"
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def test_steps_that_are_told_anyway_are_not_counted_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with console.told_steps("slimming", 2) as tell:
        tell("one")
        tell("two")
    assert capsys.readouterr().err.splitlines() == ["one", "two"]
