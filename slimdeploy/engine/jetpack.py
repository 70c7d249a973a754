"""Which TensorRT belongs to which JetPack, for the release that a Jetson says it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JetPack:
    """One generation of Jetson software.

    Attributes:
        name: "6.1 or 6.2".
        tensorrt: the TensorRT that comes with it, as (major, minor).
        advice: what to install and what not.
    """

    name: str
    tensorrt: tuple[int, int]
    advice: str


_KEEP = "use the TensorRT that came with it; TensorRT 11 does not support it"
_RELEASES = (
    ((39, 0), JetPack("7.2", (10, 16), "use 10.16; from JetPack 7.2.2 on also TensorRT 11.4")),
    ((38, 0), JetPack("7.0 or 7.1", (10, 13), _KEEP)),
    ((36, 4), JetPack("6.1 or 6.2", (10, 3), _KEEP)),
    ((36, 0), JetPack("6.0", (8, 6), "too old for slimdeploy: update to JetPack 6.1 or later")),
    (
        (0, 0),
        JetPack("5 or older", (8, 5), "too old for slimdeploy: update to JetPack 6.1 or later"),
    ),
)


def jetpack_of(l4t: tuple[int, int]) -> JetPack:
    """The JetPack of a Linux for Tegra release, as (36, 4).

    Source: NVIDIA's JetPack archive and the TensorRT 11.4 migration page; never seen on a board.
    """
    return next(jetpack for oldest, jetpack in _RELEASES if l4t >= oldest)
