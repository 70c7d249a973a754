"""The page on calibration states what the record beside it shows, and no other figure."""

from __future__ import annotations

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"


def spans() -> set[str]:
    """Lowest and highest error with one image, with four, and from sixteen on, in whole percent."""
    rows = json.loads((DOCS / "bench" / "calibration.json").read_text())["rows"]
    found = set()
    for few, many in ((1, 1), (4, 4), (16, 128)):
        errors = [100 * row["rms_error"] for row in rows if few <= row["images"] <= many]
        found.add(f"{min(errors):.0f} to {max(errors):.0f} %")
    return found


def methods() -> set[str]:
    """Top-1 and agreement of the methods that find int8's ranges."""
    record = json.loads((DOCS / "bench" / "int8_methods.json").read_text())
    shares = {f"{100 * record['float32_top1']:.2f} %"}
    for row in record["rows"]:
        shares |= {f"{100 * row['top1']:.2f} %", f"{100 * row['same_class']:.1f} %"}
    return shares


def test_every_share_on_the_page_is_recorded() -> None:
    text = " ".join((DOCS / "calibration.md").read_text().split())
    assert set(re.findall(r"(?:[\d.]+ to )?[\d.]+ %", text)) == spans() | methods()
