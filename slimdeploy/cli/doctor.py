"""`slimdeploy doctor`: what works on this machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from slimdeploy.cli.common import show

if TYPE_CHECKING:
    from slimdeploy.engine.doctor import Facts


def doctor(*, json: bool = False) -> None:
    """What is installed, what collides, which verbs work here, and what to install for the rest.

    On a Jetson it says which TensorRT belongs to its JetPack. Nothing is changed.

    Args:
        json: print the result as JSON.
    """
    from slimdeploy.engine.doctor import gather, remarks, verbs

    facts = gather()
    found, lacking = remarks(facts), verbs(facts)
    result: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": facts.host.platform,
        "gpu": None if facts.host.gpu is None else facts.host.gpu.to_json(),
        "l4t": facts.host.l4t,
        "packages": dict(facts.packages),
        "remarks": [remark.to_json() for remark in found],
        "verbs": lacking,
    }
    lines = [*_package_lines(facts), *_verb_lines(lacking)]
    lines += [f"{remark.level:<8} {remark.subject}: {remark.message}" for remark in found]
    show(result, "\n".join(lines), json)


def _package_lines(facts: Facts) -> list[str]:
    from slimdeploy.engine.doctor import PACKAGES

    head = f"Python {sys.version.split()[0]} on {facts.host.platform}"
    return [head, *(f"  {name:<18} {facts.packages.get(name, '-')}" for name in PACKAGES)]


def _verb_lines(lacking: dict[str, list[str]]) -> list[str]:
    return [
        f"{'works' if not needs else 'lacks':<8} {verb}" + f": {', '.join(needs)}" * bool(needs)
        for verb, needs in lacking.items()
    ]
