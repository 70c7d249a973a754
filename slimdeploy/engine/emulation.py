"""Number types that ONNX Runtime's CPU kernels lack: the same rounding by other means.

Accuracy can be measured so; speed can not, and the engine's name tag says what was done.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy.engine.sessions import open_session, session_options

if TYPE_CHECKING:
    import onnxruntime


def reopened(
    model: Path | str | bytes, name: str, threads: int, why: str
) -> tuple[onnxruntime.InferenceSession, str] | None:
    """A session on the CPU for a model refused for its types, and a remark on how; else None.

    ONNX Runtime moves 8-bit floats through operators that do not take them, unless it is told to
    leave them be; for bfloat16 it has casts but no arithmetic.

    Args:
        why: what ONNX Runtime said when it refused the model.
    """
    options = session_options(threads)
    if "float8" in why:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return open_session(model, name, "cpu", options), "float8 emulated"
    if "NOT_IMPLEMENTED" not in why:
        return None
    from slimdeploy.precision.emulate import emulated_file

    with emulated_file(model) as path:
        if path is None:
            return None
        return open_session(path, name, "cpu", options), "bfloat16 emulated"
