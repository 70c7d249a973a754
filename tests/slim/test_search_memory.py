"""What a search holds does not grow with layers times tokens squared; nor a refit with images."""

from __future__ import annotations

import copy
import ctypes
import mmap
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from slimdeploy.forward.ridge import Normal
from slimdeploy.slim.calibration import Calibration, fitting_batch
from slimdeploy.slim.choices import ImpactName, Reconstruct
from slimdeploy.slim.impact import make_impact
from slimdeploy.slim.reconstruct import LayerProblem
from slimdeploy.slim.refit import refit_model
from slimdeploy.slim.search import SearchOptions, search
from slimdeploy.slim.timm_models import describe

pytestmark = pytest.mark.forks

TOKENS, HEADS, IMAGES = 577, 3, 4
STREAM = 4 * IMAGES * TOKENS * 48
"""Bytes of the residual stream."""
MAPS = 4 * IMAGES * HEADS * TOKENS**2
"""Bytes of one layer's attention maps, float32."""


def growth(run: Callable[[], object]) -> int:
    """By how many bytes a fresh process's peak of memory grows while it runs something."""
    said = mmap.mmap(-1, 8)
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)
        # glibc: large tensors apart from the heap, whose holes would count as growth.
        ctypes.CDLL(None).mallopt(-3, 1 << 20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        said[:8] = (1024 * (after - before)).to_bytes(8, "little")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return int.from_bytes(said[:8], "little")


@pytest.mark.parametrize("impact", ["joint", "path"])
def test_memory_does_not_hold_every_layers_maps(
    make_vit: Callable[..., Any], impact: ImpactName
) -> None:
    grown = {}
    for depth in (4, 12):
        model = make_vit(depth=depth, img_size=384, num_heads=HEADS)
        images = torch.randn(IMAGES, 3, 384, 384, generator=torch.Generator().manual_seed(0))
        state = Calibration(model, describe(model, "small"), images)
        state.keep = {layer: list(range(TOKENS)) for layer in range(2, depth)} | {depth: [0]}
        list(state.streams(1))  # the cache of streams is in proportion to tokens, and known
        grown[depth] = growth(lambda: make_impact(impact).scores(state, 1))  # noqa: B023
    # A gradient needs some activations of each layer, in proportion to tokens.
    allowed = 8 * 16 * STREAM
    assert grown[12] - grown[4] < allowed < 0.5 * 8 * MAPS


def test_batches_shrink_where_maps_are_large() -> None:
    assert fitting_batch(6, 197) == 16
    assert fitting_batch(6, 577) == 16
    assert fitting_batch(6, 1370) == 2
    assert fitting_batch(16, 5000) == 1


def anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's /proc")
def test_a_refits_memory_does_not_grow_with_images(
    make_vit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = 4 * 17 * 48  # bytes of an image's residual stream
    few, many = 256, 4096
    dense = make_vit()
    keep = [list(range(17)), list(range(0, 17, 2)), [0, 8], [0]]
    seen: list[int] = []
    solve = Normal.solve
    # While a layer is solved for, everything that it holds is there.
    monkeypatch.setattr(Normal, "solve", lambda *a: (seen.append(anonymous()), solve(*a))[1])
    peak = {}
    for count in (few, few, many):  # the first is warming up
        seen.clear()
        images = torch.randn(1, 3, 64, 64).expand(count, -1, -1, -1)
        state = Calibration(dense, describe(dense, "small"), images, cache_bytes=0)
        before = anonymous()
        refit_model(state, copy.deepcopy(dense), keep)
        peak[count] = max(seen) - before
    assert peak[many] - peak[few] < 0.2 * stream * (many - few)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's /proc")
def test_a_searchs_memory_does_not_grow_with_images(
    make_vit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, few, many = 4 * 17 * 48, 256, 4096
    dense = make_vit()
    options = SearchOptions(counts=[12, 9, 7, 1], reconstruct="none")
    seen: list[int] = []
    error = LayerProblem.error
    monkeypatch.setattr(LayerProblem, "error", lambda *a: (seen.append(anonymous()), error(*a))[1])
    peak = {}
    for count in (few, few, many):
        seen.clear()
        images = torch.randn(1, 3, 64, 64).expand(count, -1, -1, -1)
        state = Calibration(dense, describe(dense, "small"), images, cache_bytes=0)
        before = anonymous()
        search(state, make_impact("grid"), options)
        peak[count] = max(seen) - before
    assert peak[many] - peak[few] < 0.2 * stream * (many - few)


@pytest.mark.parametrize("reconstruct", get_args(Reconstruct))
def test_streams_on_disk_give_the_same_search(
    make_vit: Callable[..., Any], reconstruct: Reconstruct
) -> None:
    dense, found = make_vit(), []
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for cache_bytes in (0, 2 << 30):
        state = Calibration(dense, describe(dense, "small"), images, 4, cache_bytes)
        options = SearchOptions(tolerance=0.1, step=3, reconstruct=reconstruct)
        found.append(search(state, make_impact("path"), options))
    assert [layer.keep for layer in found[0]] == [layer.keep for layer in found[1]]
    for one, two in zip(found[0][:-1], found[1][:-1], strict=True):
        assert one.error == pytest.approx(two.error, rel=1e-4)
