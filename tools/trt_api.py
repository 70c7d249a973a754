"""Does every attribute of TensorRT that slimdeploy calls exist, in every version it supports?

    python -m tools.trt_api --output tests/engine/tensorrt_api.json

TensorRT's libraries are not on PyPI, but its Python bindings are: they are downloaded, and load
against libraries of the right names whose functions do nothing, which gcc makes. Nothing can be
built with them; which attributes they have can be asked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from cyclopts import App

from slimdeploy.console import note
from slimdeploy.engine.trt.api import ALWAYS, RTX_ONLY, WHERE_PRESENT
from slimdeploy.files import write_text

app = App(help="Ask the real bindings of each version for the attributes that slimdeploy calls.")

VERSIONS = {
    "10.3.0": "tensorrt-cu12-bindings",
    "10.13.3.9": "tensorrt-cu12-bindings",
    "10.16.1.11": "tensorrt-cu12-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
"""Of JetPack 6.1, 7.1, 7.2, and the newest."""

FOLDER = Path("build") / "bindings"
_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
    "getInferLibVersion",
)
_ASK = """
import importlib, json, sys
trt = importlib.import_module("tensorrt_bindings" if sys.argv[1] == "tensorrt" else "tensorrt_rtx")
def has(name):
    found = trt
    for part in name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True
print(json.dumps({name: has(name) for name in sys.argv[2:]}))
"""


def download(version: str, folder: Path = FOLDER) -> Path:
    """The wheel of a version's bindings for this Python, downloaded unless it is there."""
    name = VERSIONS[version]
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", str(folder), f"{name}=={version}"], check=True)
    return next(folder.glob(pattern))


def unpack(wheel: Path, version: str, folder: Path = FOLDER) -> Path:
    """The wheel's files, and beside them `stubs/`, the libraries that they want."""
    root = folder / version
    if not (root / "stubs").is_dir():
        shutil.rmtree(root, ignore_errors=True)
        zipfile.ZipFile(wheel).extractall(root)
        module = next(root.rglob("tensorrt*.so"))
        _make_stubs(module, root / "stubs")
    return root


def _make_stubs(module: Path, folder: Path) -> None:
    made = folder.with_suffix(".new")
    made.mkdir(parents=True, exist_ok=True)
    source = made / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS))
    dynamic = subprocess.run(["readelf", "-d", module], capture_output=True, text=True, check=True)
    for library in re.findall(r"NEEDED.*\[(libnv[^\]]+)\]", dynamic.stdout):
        target = made / library
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(target)]
        subprocess.run([*command, str(source)], check=True)
    made.rename(folder)


def ask(flavour: str, names: tuple[str, ...], root: Path | None = None) -> dict[str, bool]:
    """Which of these attributes the bindings have: the unpacked ones, else the installed ones."""
    environment = dict(os.environ)
    if root is not None:
        environment |= {"PYTHONPATH": str(root), "LD_LIBRARY_PATH": str(root / "stubs")}
    command = [sys.executable, "-c", _ASK, flavour, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, bool] = json.loads(done.stdout)
    return found


def table(folder: Path = FOLDER) -> dict[str, dict[str, bool]]:
    """For each version, which attributes it has."""
    names = (*ALWAYS, *WHERE_PRESENT, *RTX_ONLY)
    found = {}
    for version in VERSIONS:
        root = unpack(download(version, folder), version, folder)
        found[version] = ask("tensorrt", names, root)
    found["tensorrt-rtx"] = ask("tensorrt-rtx", names)
    return found


@app.default
def main(*, output: Path = Path("tests/engine/tensorrt_api.json")) -> None:
    """Write the table, and fail if a supported version lacks what is called.

    Args:
        output: the table.
    """
    found = table()
    write_text(output, json.dumps(found, indent=1) + "\n")
    lacking = [
        f"{version}: {name}" for version, row in found.items() for name in ALWAYS if not row[name]
    ]
    note("\n".join(lacking) or f"{len(ALWAYS)} attributes are in all of {', '.join(found)}")
    sys.exit(bool(lacking))


if __name__ == "__main__":
    app()
