"""The quick part of the matrix: diverse families, exporters and forms, each measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tools.matrix.__main__ import FAMILIES, QUICK, Records, plan, read, write
from tools.matrix.cells import Cell, measure
from tools.matrix.exporters import EXPORTERS
from tools.matrix.table import markdown

REFUSED = {
    "swin": r"no transformer block found: node .* \(Reshape\): it turns 16 into 4 x 4",
    "dense-head": r"\(Reshape\): reads all 16 tokens, .* leaves 3: it turns 16 into 4 x 4",
}
PUBLISHED = Path(__file__).parents[2] / "docs" / "bench" / "matrix.json"


@pytest.mark.parametrize(("family", "exporter", "form"), QUICK)
def test_slim_equals_the_masked_dense_graph(family: str, exporter: str, form: str) -> None:
    cell = measure(FAMILIES[family], EXPORTERS[exporter], (form,))[form]
    if family in REFUSED:
        assert cell.status == "refused"
        assert re.search(REFUSED[family], cell.text)
        assert "\n" not in cell.text
        return
    assert cell.status == "equal", cell
    if form != "lossless":  # the masked tokens matter: an error would be seen
        assert cell.effect is not None
        assert cell.error is not None
        assert cell.effect > max(1e-2, 100 * cell.error)


def test_records_are_read_as_written_and_shown(tmp_path: Path) -> None:
    records: Records = {
        "vit": {"script17": {"gather": Cell("equal", 2e-7, 0.3), "slice": Cell("differs", 0.1)}},
        "swin": {"script17": {"gather": Cell("refused", text="node 'a': no")}},
    }
    write(tmp_path / "m.json", records)
    assert read(tmp_path / "m.json") == records
    shown = markdown(records)
    assert "| vit | **1e-01** |" in shown
    assert "| swin | refused |" in shown
    assert "- swin (script17 gather): node 'a': no" in shown


def test_the_whole_matrix_covers_every_family_and_exporter() -> None:
    files = plan(False, [])
    assert {family.name for family, _, _ in files} == set(FAMILIES)
    assert {exporter for _, exporter, _ in files} == set(EXPORTERS)
    assert [family.name for family, _, _ in plan(False, ["swin"])] == ["swin"] * 3


def test_the_published_matrix_holds_and_its_table_is_of_it() -> None:
    if not PUBLISHED.exists():
        pytest.skip("the matrix is not published yet")
    records = read(PUBLISHED)
    assert PUBLISHED.with_suffix(".md").read_text() == markdown(records)
    wrong = [
        (family, exporter, form)
        for family, exporters in json.loads(PUBLISHED.read_text()).items()
        for exporter, forms in exporters.items()
        for form, cell in forms.items()
        if cell["status"] == "differs"
    ]
    assert not wrong
