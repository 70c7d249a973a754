"""A photograph with the patches that are still computed at chosen layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import InputError, requires
from slimdeploy.files import atomic_path
from slimdeploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

Kept: TypeAlias = Sequence[Sequence[int]]
"""Per layer the ids of the tokens that it keeps."""

_PANEL = 2.1  # inches
_INK, _QUIET = "#1a1a1a", "#6b6b6b"
_LABEL: dict[str, Any] = {"fontsize": 9, "color": _INK}


def draw_kept_patches(
    images: Sequence[Image.Image],
    kept: Sequence[Kept],
    grid: tuple[int, int],
    prefix: int,
    path: Path,
    *,
    groups: Sequence[Sequence[NDArray[np.int64]]] | None = None,
    layers: Sequence[int] | None = None,
    preprocessing: Preprocessing | None = None,
    macs: tuple[float, float] | None = None,
    title: str | None = None,
) -> None:
    """Write a PNG: one row for each photograph, one column for each chosen layer.

    Patches a layer no longer computes fade almost to white; merged ones are drawn as their mean.
    The first column is the photograph.

    Args:
        images: photographs; a row each.
        kept: for each of them, per layer the ids of the kept tokens, of which 0 ... prefix - 1 are
            not patches; as many in a layer for all photographs.
        grid: rows and columns of patches.
        prefix: class, distillation and register tokens before the patches.
        path: the PNG to write.
        groups: where patches are merged, for each photograph, per layer the row of every token of
            the dense model, [tokens]: those of one row are one.
        layers: counted from 1; None chooses at most four, spread over the depth.
        preprocessing: crops the photographs to what the model sees; None takes all of them.
        macs: slim and dense multiply-accumulates for one image, for the caption.
        title: above the caption; None leaves it out.

    Raises:
        InputError: if a layer or a token id does not exist, or there are no images, or one has more
            than 8 bits a channel.
        MissingError: if matplotlib is not installed.
    """
    if not images or len(kept) != len(images):
        raise InputError("a picture of kept patches needs images, and what is kept of each")
    keep = kept[0]
    chosen = list(layers) if layers is not None else _spread(keep, prefix)
    for each in kept:
        _check(each, grid, prefix, chosen)
    with requires("report"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    views = [_pixels(image, preprocessing) for image in images]
    width, height = _PANEL * (len(chosen) + 1), _panel_heights(views)
    head = 0.54 if title else 0.28
    figure = Figure(figsize=(width, sum(height) + head + 0.22), facecolor="white")
    axes = figure.subplots(len(views), len(chosen) + 1, squeeze=False, height_ratios=height)
    for index, (row, view, each) in enumerate(zip(axes, views, kept, strict=True)):
        if groups is None:
            left = [fade(view, kept_mask(each[layer - 1], grid, prefix)) for layer in chosen]
        else:
            left = [averaged(view, groups[index][at - 1][prefix:], grid) for at in chosen]
        _draw_row(row, [view, *left])
    axes[0][0].set_title("what the model sees" if preprocessing else "photograph", **_LABEL)
    _label_layers(axes[0][1:], keep, chosen, grid, prefix)
    whose = "The same positions for every image" if _alike(kept) else "Each image its own patches"
    whose = whose if groups is None else "Alike patches are merged into their mean"
    _caption(figure, title, f"{_summary(keep, grid, prefix, macs)}. {whose}.")
    figure.subplots_adjust(
        left=0.01,
        right=0.99,
        bottom=0.1 / figure.get_figheight(),
        top=1 - (head + 0.3) / figure.get_figheight(),
        wspace=0.04,
        hspace=0.04,
    )
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary, dpi=160, format="png")


def _alike(kept: Sequence[Kept]) -> bool:
    return all(list(map(set, each)) == list(map(set, kept[0])) for each in kept)


def _draw_row(row: Sequence[Any], pictures: Sequence[NDArray[np.uint8]]) -> None:
    """The photograph, then what each layer has of it."""
    for panel, pixels in zip(row, pictures, strict=True):
        panel.imshow(pixels)
        _bare(panel)


def averaged(
    pixels: NDArray[np.uint8], rows: NDArray[np.int64], grid: tuple[int, int]
) -> NDArray[np.uint8]:
    """The photograph, uint8 [h, w, 3], each patch in the mean colour of all in its row.

    Patches that stand for themselves stay as they are. `rows` is the row of every patch.
    """
    height, width = pixels.shape[:2]
    down = np.arange(height) * grid[0] // height
    across = np.arange(width) * grid[1] // width
    row = rows[down[:, None] * grid[1] + across[None, :]]
    count = np.bincount(row.ravel())
    sums = [np.bincount(row.ravel(), pixels[..., c].ravel().astype(float)) for c in range(3)]
    means = np.stack(sums, axis=1) / np.maximum(count, 1)[:, None]
    merged = np.bincount(rows, minlength=len(count))[row] > 1
    found: NDArray[np.uint8] = np.where(merged[..., None], means[row], pixels).astype(np.uint8)
    return found


def kept_mask(keep: Sequence[int], grid: tuple[int, int], prefix: int) -> NDArray[np.bool_]:
    """Which patches a layer keeps, bool [rows, columns]."""
    mask = np.zeros(grid[0] * grid[1], dtype=bool)
    mask[[token - prefix for token in keep if token >= prefix]] = True
    return mask.reshape(grid)


def fade(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The photograph, uint8 [h, w, 3], with the patches outside `mask` a pale grey ghost."""
    height, width = pixels.shape[:2]
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    kept = mask[np.ix_(rows, columns)][..., None]
    pale = 224 + pixels.mean(axis=2, keepdims=True) * (31 / 255)
    faded: NDArray[np.uint8] = np.where(kept, pixels, pale).astype(np.uint8)
    return faded


def _spread(keep: Kept, prefix: int) -> list[int]:
    """Up to four layers, evenly apart, among those that still compute a patch."""
    last = max((i for i, ids in enumerate(keep, 1) if any(t >= prefix for t in ids)), default=1)
    return sorted({max(1, round(last * quarter / 4)) for quarter in (1, 2, 3, 4)})


def _check(keep: Kept, grid: tuple[int, int], prefix: int, layers: Sequence[int]) -> None:
    if not layers:
        raise InputError("a picture of kept patches needs a layer at least")
    for layer in layers:
        if not 1 <= layer <= len(keep):
            raise InputError(f"layer {layer} does not exist: the schedule has 1 to {len(keep)}")
    tokens = prefix + grid[0] * grid[1]
    for layer, ids in enumerate(keep, 1):
        outside = [token for token in ids if not 0 <= token < tokens]
        if outside:
            raise InputError(
                f"layer {layer} keeps token {outside[0]}, but a grid of {grid[0]} x {grid[1]} "
                f"patches after {prefix} prefix tokens ends at {tokens - 1}"
            )


def _pixels(image: Image.Image, preprocessing: Preprocessing | None) -> NDArray[np.uint8]:
    try:
        seen = preprocessing.crop(image) if preprocessing else image.convert("RGB")
    except InputError as error:
        file = image.info.get("file")
        raise InputError(f"{file}: {error}" if file else str(error)) from error
    return np.asarray(seen, dtype=np.uint8)


def _panel_heights(views: Sequence[NDArray[np.uint8]]) -> list[float]:
    return [_PANEL * view.shape[0] / view.shape[1] for view in views]


def _bare(panel: Any) -> None:
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_color("#d0d0d0")
        spine.set_linewidth(0.6)


def _label_layers(
    row: Sequence[Any],
    keep: Kept,
    layers: Sequence[int],
    grid: tuple[int, int],
    prefix: int,
) -> None:
    for panel, layer in zip(row, layers, strict=True):
        kept, total = int(kept_mask(keep[layer - 1], grid, prefix).sum()), grid[0] * grid[1]
        panel.set_title(f"layer {layer}: {kept} of {total} patches", **_LABEL)


def _summary(
    keep: Kept,
    grid: tuple[int, int],
    prefix: int,
    macs: tuple[float, float] | None,
) -> str:
    computed = sum(int(kept_mask(ids, grid, prefix).sum()) for ids in keep)
    share = computed / (len(keep) * grid[0] * grid[1])
    text = f"{share:.0%} of the patch positions are computed, over {len(keep)} layers"
    if macs is not None:
        slim, dense = macs
        text += f"; {slim / 1e9:.2f} of {dense / 1e9:.2f} GMAC, {1 - slim / dense:.0%} fewer"
    return text


def _caption(figure: Any, title: str | None, summary: str) -> None:
    height = figure.get_figheight()
    if title:
        figure.text(0.01, 1 - 0.1 / height, title, fontsize=12, color=_INK, va="top", weight="bold")
    below = 0.36 if title else 0.1
    figure.text(0.01, 1 - below / height, summary, fontsize=9, color=_QUIET, va="top")
