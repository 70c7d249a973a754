"""What of a fake the thing it stands for lacks: no test may pass by what only its fake can do."""

from __future__ import annotations

import inspect
from typing import Any

from slimdeploy.engine.trt.api import ALWAYS


def beyond_bindings(fake: type, kind: str, own: tuple[str, ...] = ()) -> set[str]:
    """Public names of a fake, but for its `own`, that TensorRT's class `kind` is not known to have.

    Every supported version has what `slimdeploy.engine.trt.api` lists: `test_trt_api` asks them.
    """
    return {f"{kind}.{name}" for name in _public(vars(fake)) - set(own)} - set(ALWAYS)


def beyond_object(fake: object, real: object, own: tuple[str, ...] = ()) -> set[str]:
    """Public names of a fake, but for its `own`, that the real object lacks or takes otherwise."""
    names = _public(dir(fake)) - set(own)
    lacking = {name for name in names if not hasattr(type(real), name) and name not in vars(real)}
    methods = {name for name in names - lacking if callable(getattr(fake, name))}
    if "__init__" in vars(type(fake)):
        methods.add("__init__")
    return lacking | {name for name in methods if _takes(fake, name) != _takes(real, name)}


def _public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def _takes(thing: object, name: str) -> list[str]:
    return list(inspect.signature(getattr(thing, name)).parameters)
