"""Find TensorRT's Python package, and say in words why it cannot be loaded."""

from __future__ import annotations

import importlib
import re
from typing import Any, Literal

from slimdeploy.errors import InputError, MissingError, one_line

Flavour = Literal["tensorrt", "tensorrt-rtx"]

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_OLDEST = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 4)}
_BEYOND = {"tensorrt": (12, 0), "tensorrt-rtx": (2, 0)}


def load_bindings(flavour: Flavour) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`.

    Raises:
        MissingError: if it is not installed, one of its libraries is missing, or it is a version
            that this adapter was not written for.
    """
    name = _MODULES[flavour]
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise MissingError(_why_not(flavour, error)) from error
    found = version_of(str(module.__version__))
    if not _OLDEST[flavour] <= found < _BEYOND[flavour]:
        low, high = (".".join(map(str, v)) for v in (_OLDEST[flavour], _BEYOND[flavour]))
        raise MissingError(
            f"{name} {module.__version__} is installed; slimdeploy needs {low} or later, below "
            f"{high}: install such a version"
        )
    return module


def version_of(text: str) -> tuple[int, int]:
    """(major, minor) of a version.

    Raises:
        InputError: if it has none.
    """
    found = re.match(r"(\d+)\.(\d+)", text)
    if found is None:
        raise InputError(f"'{text}' is no version: expected numbers with points, as 10.3.0")
    return int(found[1]), int(found[2])


def _why_not(flavour: Flavour, error: ImportError) -> str:
    """Not installed, or installed without its libraries: two different remedies."""
    name, text = _MODULES[flavour], one_line(error)
    library = re.search(r"lib[\w.+-]+\.so[.\d]*", text)
    if library is not None:
        return (
            f"{name} is installed, but its library {library[0]} cannot be loaded: install the "
            "TensorRT libraries of that very version, or put their folder on LD_LIBRARY_PATH"
        )
    missing = error.name or name
    remedy = f"pip install 'slimdeploy[{flavour}]'"
    if flavour == "tensorrt":
        remedy += "; on a Jetson it comes with JetPack: python -m venv --system-site-packages"
    return f"{missing} is not installed: {remedy}"
