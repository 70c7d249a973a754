"""The matrix as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tools.matrix.cells import TOLERANCE, TOLERANCE_HALF, Cell

Records = Mapping[str, Mapping[str, Mapping[str, Cell]]]

_SHORT = {"not exported": "no file", "broken file": "bad file", "refused": "refused"}


def markdown(records: Records) -> str:
    """Both tables and the reasons below them."""
    exporters = list(dict.fromkeys(name for row in records.values() for name in row))
    forms = list(
        dict.fromkeys(form for row in records.values() for cells in row.values() for form in cells)
    )
    lines = [
        "# Families, exporters and forms",
        "",
        "Small models with random weights. Each number is the largest error of a cell: the largest "
        "absolute difference between the slim graph and the dense graph with the dropped tokens "
        "masked out (lossless: the dense graph), over batches of 1 and 3, as a share of the "
        f"largest value. Allowed are {TOLERANCE:.0e}, and {TOLERANCE_HALF:.0e} in half precision. "
        "Schedules are random, nested and irregular; heads that pool do so over the kept tokens "
        "(`--pool-kept`), and the form slice keeps all prefix tokens. "
        "*Refused*: slimdeploy names the node and the reason, see below. *No file*: PyTorch could "
        "not export the model. *Bad file*: ONNX Runtime cannot run what PyTorch wrote. "
        "Made by `python -m tools.matrix --output docs/bench/matrix`.",
        "",
        "## By exporter: the worst of all forms",
        "",
        *_table(records, exporters, lambda row, name: row.get(name, {}).values()),
        "",
        "## By form: the worst of all exporters, half precision left out",
        "",
        *_table(records, forms, _of_form),
        "",
        "## Reasons",
        "",
        *_reasons(records),
    ]
    return "\n".join(lines) + "\n"


def _of_form(row: Mapping[str, Mapping[str, Cell]], form: str) -> list[Cell]:
    return [cells[form] for name, cells in row.items() if form in cells and "fp16" not in name]


def _table(records: Records, columns: list[str], pick: object) -> list[str]:
    lines = [f"| family | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for family, row in records.items():
        shown = [_worst(pick(row, column)) for column in columns]  # type: ignore[operator]
        lines.append(f"| {family} | {' | '.join(shown)} |")
    return lines


def _worst(cells: Iterable[Cell]) -> str:
    """The largest error, or what happened where there is none."""
    found = list(cells)
    if wrong := [cell for cell in found if cell.status == "differs"]:
        return f"**{max(cell.error or 0.0 for cell in wrong):.0e}**"
    errors = [cell.error for cell in found if cell.error is not None]
    others = [_SHORT[cell.status] for cell in found if cell.status in _SHORT]
    words = [f"{max(errors):.0e}"] if errors else []
    return ", ".join([*words, *dict.fromkeys(others)])


def _reasons(records: Records) -> list[str]:
    """Each reason once for a family, with where it was given."""
    lines = []
    for family, row in records.items():
        places: dict[str, list[str]] = {}
        for exporter, cells in row.items():
            for form, cell in cells.items():
                if cell.text:
                    places.setdefault(cell.text, []).append(f"{exporter} {form}")
        lines += [f"- {family} ({', '.join(where)}): {text}" for text, where in places.items()]
    return lines
