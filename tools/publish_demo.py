"""Put the last `make demo` into the README: `python -m tools.publish_demo`.

Copies the run's record and the schedule's picture (which shows no photograph: the data set's
licence keeps those out of the repository) to docs/demo, and rewrites the README's table.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from slimdeploy.files import write_text
from tools.demo import OUT, markdown

README, TARGET = Path("README.md"), Path("docs/demo")


def main() -> None:
    """Publish build/demo; the repository's root is the working folder."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in ("summary.json", "lifetimes.png"):
        shutil.copyfile(OUT / name, TARGET / name)
    table = markdown(json.loads((TARGET / "summary.json").read_text()))
    marked = re.compile(r"(<!-- demo -->\n).*?(<!-- /demo -->)", re.DOTALL)
    text, found = marked.subn(lambda m: f"{m[1]}{table}{m[2]}", README.read_text())
    if found != 1:
        raise SystemExit(f"{README}: has no <!-- demo --> ... <!-- /demo --> to fill")
    write_text(README, text)


if __name__ == "__main__":
    main()
