"""Ways to damage an ONNX model, and ways to write the same model differently.

Each takes a private copy of a model and a source of random choices, and returns the changed model.
`DAMAGE` may make it invalid or another function; `LEGAL` keeps it valid and the same function.
"""

from __future__ import annotations

from tests.graph.damage import names, numbers, operators, rewritings
from tests.graph.damage.common import DAMAGE, LEGAL, Change, Model

__all__ = ["DAMAGE", "LEGAL", "Change", "Model", "names", "numbers", "operators", "rewritings"]
