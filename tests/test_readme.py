"""The README's commands, links and figures are true."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from slimdeploy.cli import make_app
from tools.demo import markdown

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("models/*/README.md")),
]


def commands(document: Path) -> list[list[str]]:
    """Every `slimdeploy ...` line of the document's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["slimdeploy"]]


@pytest.mark.parametrize(
    "command", [line for page in DOCUMENTS for line in commands(page)], ids=lambda c: c[0]
)
def test_commands_are_accepted(command: list[str]) -> None:
    make_app().parse_args(command, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: f"{d.parent.name}/{d.name}")
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_the_demo_table_is_the_recorded_run() -> None:
    summary = json.loads((ROOT / "docs" / "demo" / "summary.json").read_text())
    assert markdown(summary) in (ROOT / "README.md").read_text()
    assert summary["mac_reduction"] >= 0.46
