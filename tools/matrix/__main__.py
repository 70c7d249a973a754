"""`python -m tools.matrix --output docs/bench/matrix`: measure every cell, write JSON and Markdown.

What the JSON file holds already is not measured again, so an interrupted run goes on where it
stopped; delete the file, or name families with --family, to measure anew. Exported files are kept
in build/matrix; delete them if a library was updated. Where PyTorch cannot export a model it
prints its graph on stdout, which may be sent to /dev/null: nothing else is written there.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from slimdeploy.console import note, progress_bar
from slimdeploy.files import write_text
from tools.matrix.cells import FORMS, Cell, measure
from tools.matrix.exporters import EXPORTERS
from tools.matrix.families import PLAIN, POSITION, Family
from tools.matrix.hugging_face import HUGGING_FACE
from tools.matrix.other_models import OTHER_MODELS
from tools.matrix.table import markdown

Records = dict[str, dict[str, dict[str, Cell]]]
"""Cells by family, exporter and form."""

CACHE = Path("build/matrix")
TRANSFORMERS = (*PLAIN, *POSITION, *HUGGING_FACE)
FAMILIES = {family.name: family for family in (*TRANSFORMERS, *OTHER_MODELS)}
THOROUGH = ("dynamo18-fused", "dynamo23-fused", "script17-eager")
"""The exporters whose files are written in all forms."""

QUICK = (
    ("vit", "dynamo18-fused", "gather"),
    ("vit-3x5", "script17-fused", "slice"),
    ("deit-distilled", "script17-eager+onnxslim", "slice-concat"),
    ("vit-reg4", "script17-eager", "one-hot"),
    ("vit-reg4-gap", "script17-eager+external", "gather"),
    ("clip", "script17-eager-static", "optimize"),
    ("siglip", "dynamo23-fused", "gather"),
    ("beit", "dynamo18-eager+fp16", "gather"),
    ("dinov3-token", "dynamo23-fused", "slice"),
    ("hf-vit", "dynamo18-fused", "gather"),
    ("hf-dinov2", "script17-fused", "lossless"),
    ("swin", "script17-eager", "gather"),
    ("dense-head", "script17-eager", "gather"),
)


def plan(quick: bool, chosen: list[str]) -> list[tuple[Family, str, tuple[str, ...]]]:
    """The files to measure: family, exporter and forms."""
    if quick:
        return [(FAMILIES[family], exporter, (form,)) for family, exporter, form in QUICK]
    whole = [
        (family, name, FORMS if name in THOROUGH else ("gather", "lossless"))
        for family in TRANSFORMERS
        for name in EXPORTERS
    ]
    whole += [
        (family, name, ("gather", "lossless")) for family in OTHER_MODELS for name in THOROUGH
    ]
    return [item for item in whole if not chosen or item[0].name in chosen]


def read(path: Path) -> Records:
    """The cells measured so far."""
    if not path.exists():
        return {}
    return {
        family: {
            exporter: {form: Cell(**cell) for form, cell in forms.items()}
            for exporter, forms in exporters.items()
        }
        for family, exporters in json.loads(path.read_text()).items()
    }


def write(path: Path, records: Records) -> None:
    """Write the cells, leaving out what a cell does not have."""
    plain = {
        family: {
            exporter: {
                form: {key: value for key, value in asdict(cell).items() if value not in (None, "")}
                for form, cell in forms.items()
            }
            for exporter, forms in exporters.items()
        }
        for family, exporters in records.items()
    }
    write_text(path, json.dumps(plain, indent=1) + "\n")


def main() -> None:
    """Measure what is missing and write both files after every model file."""
    parser = argparse.ArgumentParser(prog="python -m tools.matrix", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="both files, without suffix")
    parser.add_argument("--quick", action="store_true", help="a dozen diverse cells")
    parser.add_argument("--family", action="append", default=[], choices=FAMILIES, metavar="NAME")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    path = arguments.output.with_suffix(".json")
    records = read(path)
    for name in arguments.family:
        records.pop(name, None)
    files = plan(arguments.quick, arguments.family)
    with progress_bar() as progress:
        for family, name, forms in progress.track(files, description="measuring"):
            cells = records.setdefault(family.name, {}).setdefault(name, {})
            missing = tuple(form for form in forms if form not in cells)
            if missing:
                cells.update(measure(family, EXPORTERS[name], missing, CACHE))
                write(path, records)
    write_text(path.with_suffix(".md"), markdown(records))
    wrong = [
        f"{family} {exporter} {form}: error {cell.error:.1e}"
        for family, exporters in records.items()
        for exporter, forms_of in exporters.items()
        for form, cell in forms_of.items()
        if cell.status == "differs"
    ]
    note("\n".join(wrong) or "no cell differs from its reference")


if __name__ == "__main__":
    main()
