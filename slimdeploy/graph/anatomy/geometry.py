"""An ONNX file's geometry, as a keep schedule holds it."""

from __future__ import annotations

from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph.anatomy import Anatomy
from slimdeploy.schedule import ModelGeometry, PrefixKind

_MUST_AGREE = ("input_size", "grid", "depth", "width", "heads", "head_reads", "head_pools")


def geometry_of(anatomy: Anatomy, name: str, outputs: tuple[str, ...] = ()) -> ModelGeometry:
    """What a schedule for this graph must know of it.

    Args:
        name: what the schedule calls the model: its file.
        outputs: those that were kept, if not all.

    Raises:
        GraphError: if the grid of patches is no even division of the image.
    """
    channels, height, width = anatomy.image.size
    down, across = anatomy.grid
    patch = (height // down, width // across)
    if 0 in patch or (height // patch[0], width // patch[1]) != (down, across):
        raise GraphError(
            f"input '{anatomy.image.name}': {height} x {width} pixels are not divided evenly "
            f"into {down} x {across} patches"
        )
    return ModelGeometry(
        source="onnx",
        name=name,
        input_size=(channels, height, width),
        patch_size=patch,
        grid=anatomy.grid,
        prefix=_prefix_kinds(anatomy),
        depth=len(anatomy.blocks),
        width=anatomy.width,
        heads=anatomy.heads,
        mlp_width=anatomy.mlp_width,
        num_classes=anatomy.num_classes,
        head_reads=anatomy.head.reads,
        head_pools=anatomy.head.pools,
        outputs=outputs,
    )


def _prefix_kinds(anatomy: Anatomy) -> tuple[PrefixKind, ...]:
    """A graph does not say what a prefix token is for, only whether the head reads it."""
    used = {*anatomy.head.reads, *anatomy.head.pools}
    read = [i for i in range(anatomy.prefix) if i in used]
    if not read and anatomy.prefix == 1:
        return ("class",)
    names: dict[int, PrefixKind] = dict(zip(read, ("class", "distillation"), strict=False))
    return tuple(names.get(i, "register") for i in range(anatomy.prefix))


def check_geometry(found: ModelGeometry, wanted: ModelGeometry, schedule: str) -> None:
    """Refuse a schedule that was made for another model than this file's.

    Raises:
        InputError: with the first field that differs.
    """
    if len(found.prefix) != len(wanted.prefix):
        raise InputError(
            f"{schedule}: model.prefix has {len(wanted.prefix)} tokens, {found.name} has "
            f"{len(found.prefix)}; the schedule is for another model"
        )
    for field in _MUST_AGREE:
        ours, theirs = getattr(found, field), getattr(wanted, field)
        if ours != theirs:
            raise InputError(
                f"{schedule}: model.{field} is {_short(theirs)}, {found.name} has {_short(ours)}; "
                "the schedule is for another model"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."
