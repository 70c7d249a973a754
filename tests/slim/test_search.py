"""The top-down search: nesting, budgets, tolerance, resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from slimdeploy.errors import InputError
from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.run_state import settings_of
from slimdeploy.schedule import Layer, token_problem
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.impact import make_impact
from slimdeploy.slim.reconstruct import LayerProblem
from slimdeploy.slim.search import SearchOptions, recover, search, top_up
from slimdeploy.slim.search_state import SearchState
from slimdeploy.slim.timm_models import describe


def calibration(make_vit: Callable[..., Any], **variant: Any) -> Calibration:
    model = make_vit(**variant)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Calibration(model, describe(model, "small"), images, batch_size=2)


def legal(state: Calibration, layers: list[Layer]) -> bool:
    return token_problem(state.geometry, [layer.keep for layer in layers]) is None


@pytest.mark.parametrize("reconstruct", ["none", "refit", "gradient"])
@pytest.mark.parametrize("variant", [{}, {"distilled": True}, {"reg_tokens": 2}], ids=str)
def test_a_budget_is_kept_exactly(
    make_vit: Callable[..., Any], variant: dict, reconstruct: Any
) -> None:
    state = calibration(make_vit, **variant)
    last = len(state.geometry.head_reads)
    counts = [12, 9, 7, last]
    layers = search(
        state, make_impact("path"), SearchOptions(counts=counts, reconstruct=reconstruct)
    )
    assert [len(layer.keep) for layer in layers] == counts
    assert legal(state, layers)
    assert all(set(state.protected) <= set(layer.keep) for layer in layers[:-1])
    assert all(layer.error is not None and layer.error > 0 for layer in layers[:-1])


def test_a_tolerance_is_met_and_a_smaller_one_keeps_more(make_vit: Callable[..., Any]) -> None:
    found = {}
    for tolerance in (0.2, 0.02):
        state = calibration(make_vit)
        options = SearchOptions(tolerance=tolerance, step=3, reconstruct="none")
        found[tolerance] = search(state, make_impact("path"), options)
        assert legal(state, found[tolerance])
        for layer in found[tolerance][:-1]:
            assert layer.error is not None
            assert layer.error <= tolerance
    loose, tight = (sum(len(x.keep) for x in found[t]) for t in (0.2, 0.02))
    assert loose < tight


@pytest.mark.parametrize("reconstruct", ["refit", "gradient"])
def test_reconstruction_lowers_the_next_layers_error(
    make_vit: Callable[..., Any], reconstruct: Any
) -> None:
    state = calibration(make_vit)
    state.keep = {4: [0], 3: [0, 3, 7]}
    problem, keep = LayerProblem.collect(state, 2), [0, 3, 7, 9, 12]
    before = problem.error(keep)
    options = SearchOptions(
        tolerance=0.1, reconstruct=reconstruct, refit=RidgeOptions(strength=0.01)
    )
    recover(problem, keep, options)
    assert problem.error(keep) < 0.9 * before


def test_keeping_every_token_has_no_error(make_vit: Callable[..., Any]) -> None:
    state = calibration(make_vit)
    state.keep = {4: [0], 3: [0, 3]}
    problem = LayerProblem.collect(state, 2)
    assert problem.error(list(range(17))) < 1e-12
    assert problem.error([0, 3]) > 1e-4


def test_top_up_takes_the_best_of_all_tokens_beside_the_floor() -> None:
    scores = torch.tensor([0.0, 5.0, 1.0, 4.0, 4.0])
    assert top_up(scores, [0], 3) == [0, 1, 3]
    assert top_up(scores, [0, 1], 2) == [0, 1]
    assert top_up(scores, [0, 1, 2], 2) == [0, 1, 2]


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("reconstruct", ["none", "gradient"])
def test_a_killed_search_goes_on_to_the_same_result(
    make_vit: Callable[..., Any], tmp_path: Path, reconstruct: Any
) -> None:
    options = SearchOptions(counts=[12, 9, 7, 1], reconstruct=reconstruct)
    whole = search(calibration(make_vit), make_impact("path"), options)

    def kill_at_layer_2(layer: int, _: Layer) -> None:
        if layer == 2:
            raise _KilledError

    folder, settings = tmp_path / "work", settings_of(options)
    with pytest.raises(_KilledError):
        search(
            calibration(make_vit),
            make_impact("path"),
            options,
            SearchState(folder, settings),
            kill_at_layer_2,
        )
    assert sorted(p.name for p in folder.glob("layer-*.json")) == [
        "layer-002.json",
        "layer-003.json",
    ]
    seen: list[int] = []
    saved = SearchState(folder, settings)
    impact = _Counting(seen)
    assert search(calibration(make_vit), impact, options, saved) == whole
    assert seen == [1], "finished layers are not scored again"
    saved.clear()
    assert not folder.exists()


class _Counting:
    def __init__(self, seen: list[int]) -> None:
        self.seen, self.inner = seen, make_impact("path")

    def scores(self, state: Calibration, layer: int) -> torch.Tensor:
        self.seen.append(layer)
        return self.inner.scores(state, layer)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def _other_block(path: Path) -> None:
    save_file({"norm1.weight": torch.zeros(3)}, path)


@pytest.mark.parametrize("damage", [_cut, Path.unlink, _other_block])
@pytest.mark.parametrize("name", ["layer-002.json", "layer-002.block-2.safetensors"])
def test_a_layer_whose_files_are_damaged_is_slimmed_again(
    make_vit: Callable[..., Any],
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = SearchOptions(counts=[12, 9, 7, 1], reconstruct="refit")
    saved = SearchState(tmp_path / "w", settings_of(options))
    first = calibration(make_vit)
    whole = search(first, make_impact("path"), options, saved)
    damage(tmp_path / "w" / name)
    seen: list[int] = []
    again = calibration(make_vit)
    assert search(again, _Counting(seen), options, saved) == whole
    assert seen == [2]
    never_done = name == "layer-002.json" and damage is Path.unlink
    assert ("layer 2 is unreadable" in capsys.readouterr().err) != never_done
    for one, other in zip(first.slim.parameters(), again.slim.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_runs_folder_is_not_used(make_vit: Callable[..., Any], tmp_path: Path) -> None:
    options = SearchOptions(counts=[12, 9, 7, 1], reconstruct="none")
    state = calibration(make_vit)
    search(state, make_impact("path"), options, SearchState(tmp_path / "w", settings_of(options)))
    SearchState(tmp_path / "w", settings_of(options, data="other"))
    assert [p.name for p in (tmp_path / "w").iterdir()] == ["settings.json"]


def test_layers_without_settings_are_not_used(make_vit: Callable[..., Any], tmp_path: Path) -> None:
    """What a kill in the middle of clearing leaves behind."""
    options = SearchOptions(counts=[12, 9, 7, 1], reconstruct="none")
    state, folder = calibration(make_vit), tmp_path / "w"
    search(state, make_impact("path"), options, SearchState(folder, settings_of(options)))
    (folder / "settings.json").unlink()
    SearchState(folder, settings_of(options))
    assert [p.name for p in folder.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give one of --mac-reduction and --tolerance"),
        ({"tolerance": 0.1, "counts": [1]}, "give one of"),
        ({"tolerance": 1.5}, "--tolerance 1.5: must be between 0 and 1"),
        ({"tolerance": 0.1, "step": 0}, "--step 0: must be at least 1"),
    ],
)
def test_senseless_options_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchOptions(**fields)
