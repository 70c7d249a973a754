"""`doctor` on the machine of the tests, for people and for programs."""

from __future__ import annotations

import json

import pytest

from slimdeploy.cli import main


def test_it_says_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    shown = capsys.readouterr()
    assert "works    build --backend onnxruntime" in shown.out
    assert shown.err == ""


def test_its_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["verbs"]["build --backend onnxruntime"] == []
    assert found["packages"]["onnx"]
    assert {"level", "subject", "message"} == set(found["remarks"][0])
