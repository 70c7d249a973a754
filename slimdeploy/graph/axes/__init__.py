"""One table of what every operator does to the axes of its operands.

To support an operator, write its rule beside its kin and enter it in that file's `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable

from slimdeploy.graph.axes import elementwise, indexing, layout, products
from slimdeploy.graph.axes.relation import Ids, Link, Op, Port, Relation, Shape, opaque

__all__ = ["RULES", "Ids", "Link", "Op", "Port", "Relation", "Shape", "opaque", "relate"]

RULES: dict[str, Callable[[Op], Relation]] = {
    **elementwise.RULES,
    **products.RULES,
    **layout.RULES,
    **indexing.RULES,
}


def relate(op: Op) -> Relation:
    """The relation of `op`; one without a rule lets no axis pass, and says so."""
    rule = RULES.get(op.kind)
    return rule(op) if rule else opaque(f"slimdeploy has no rule for {op.kind}")
