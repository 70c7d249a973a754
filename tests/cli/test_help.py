"""`slimdeploy VERB --help` tells the verb's whole story; `slimdeploy --help` a line of each."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from slimdeploy.cli import _VERBS, main


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed, without the line breaks of a narrow terminal."""
    main(words)
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", _VERBS)
def test_a_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    function = getattr(import_module(f"slimdeploy.cli.{verb}"), verb)
    story = inspect.getdoc(function).split("\n\nArgs:")[0]
    shown = told([verb, "--help"], capsys)
    for paragraph in story.split("\n\n"):
        assert " ".join(paragraph.replace("`", "").split()) in shown


def test_flags_that_go_together_stand_together(capsys: pytest.CaptureFixture[str]) -> None:
    shown = told(["slim", "--help"], capsys)
    assert shown.index("--dynamic") < shown.index("With --onnx") < shown.index("--mean")


def test_the_list_of_verbs_has_a_line_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    shown = told(["--help"], capsys)
    assert "Search which patches each layer needs" in shown
    assert "A search that was killed" not in shown
