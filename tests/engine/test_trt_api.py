"""What the adapter calls of TensorRT exists in every version it supports."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from slimdeploy.engine import trt as adapter
from slimdeploy.engine.trt.api import ALWAYS, RTX_ONLY, WHERE_PRESENT
from tools.trt_api import FOLDER, VERSIONS, ask, table

RECORDED = Path(__file__).parent / "tensorrt_api.json"
LISTED = {*ALWAYS, *WHERE_PRESENT, *RTX_ONLY}


def trees() -> dict[str, ast.Module]:
    folder = Path(adapter.__file__).parent
    return {path.name: ast.parse(path.read_text()) for path in sorted(folder.glob("*.py"))}


def chain(node: ast.Attribute) -> list[str]:
    """`trt.BuilderFlag.X` as ["trt", "BuilderFlag", "X"]; [] if it does not start with a name."""
    parts = [node.attr]
    value = node.value
    while isinstance(value, ast.Attribute):
        parts.append(value.attr)
        value = value.value
    return [*([value.id] if isinstance(value, ast.Name) else []), *parts[::-1]]


def attributes() -> list[tuple[str, ast.Attribute]]:
    return [
        (name, node)
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
    ]


def test_what_is_read_from_the_module_is_listed() -> None:
    classes = {name.split(".")[0] for name in LISTED}
    seen = set()
    for file, node in attributes():
        parts = chain(node)
        if parts[:1] == ["trt"] and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in classes, f"{file}: trt.{'.'.join(parts[1:])} is not in api.py"
            if len(parts) > 2 and parts[2] != "__init__":
                seen.add(".".join(parts[1:3]))
    assert len(seen) > 7
    assert seen <= LISTED, sorted(seen - LISTED)


def test_what_is_called_on_its_objects_is_listed() -> None:
    """By name: any attribute that some class of the real bindings has must be listed of one."""
    trt = pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    known = {
        attribute
        for _, kind in inspect.getmembers(trt, inspect.isclass)
        if kind.__module__.startswith("tensorrt")
        for attribute in dir(kind)
        if not attribute.startswith("_")
    }
    listed = {name.split(".")[1] for name in LISTED} | {name.split(".")[0] for name in LISTED}
    ours = {"append", "builder", "clear", "pop", "start"}  # of our records and of dictionaries
    called = {node.attr for _, node in attributes()} & known - ours
    assert len(called) > 25
    assert called <= listed, sorted(called - listed)


def test_the_progress_callbacks_are_those_of_the_bindings() -> None:
    source = ast.unparse(trees()["events.py"])
    for name in (name for name in ALWAYS if name.startswith("IProgressMonitor.")):
        assert f"def {name.split('.')[1]}(" in source


@pytest.mark.parametrize("version", VERSIONS)
def test_every_supported_version_has_them(version: str) -> None:
    """By the recorded answers of the real bindings; the next test asks them anew."""
    row = json.loads(RECORDED.read_text())[version]
    assert set(row) == LISTED, "run python -m tools.trt_api"
    assert [name for name in ALWAYS if not row[name]] == []
    assert not any(row[name] for name in RTX_ONLY)


def test_the_record_is_what_the_bindings_answer() -> None:
    missing = [version for version in VERSIONS if not list(FOLDER.glob(f"*-{version}-*.whl"))]
    if missing:
        pytest.skip(f"bindings of {', '.join(missing)} are not in {FOLDER}: make bindings")
    assert json.loads(RECORDED.read_text()) == table()


def test_the_installed_bindings_have_them() -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    found = ask("tensorrt-rtx", tuple(sorted(LISTED)))
    assert [name for name in (*ALWAYS, *RTX_ONLY) if not found[name]] == []


def test_an_invented_attribute_is_noticed() -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    found: dict[str, Any] = ask("tensorrt-rtx", ("Builder.no_such_thing", "Builder.create_network"))
    assert found == {"Builder.no_such_thing": False, "Builder.create_network": True}
