"""What a dense ONNX vision transformer consists of, read from the graph itself.

Blocks come from `find_blocks`. `origin` follows the residual stream's token axis towards the image,
id by id, until patches appear; `head` asks the flow of tokens, by trying, what the head can do
without; `sizes` reads widths from shapes and weights. Nothing looks at names.
"""

from __future__ import annotations

from slimdeploy.graph.anatomy.head import Head
from slimdeploy.graph.anatomy.read import Anatomy, Table, read_anatomy

__all__ = ["Anatomy", "Head", "Table", "read_anatomy"]
