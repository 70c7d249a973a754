"""`slim --onnx --dynamic`: by ONNX Runtime and numpy, what the PyTorch path makes."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from slimdeploy.dynamic import PerImage
from slimdeploy.errors import InputError
from slimdeploy.forward.dynamic import require_single_reads, slim_dynamic
from slimdeploy.forward.predictor import fit_predictor
from slimdeploy.forward.ridge import RidgeOptions, ridge_options
from slimdeploy.forward.slimming import ForwardRequest, ForwardSlim, steps
from slimdeploy.graph import GraphOptions
from slimdeploy.run_state import RunState
from slimdeploy.schedule import KeepSchedule, Provenance
from slimdeploy.slim.dynamic import DynamicRequest, dynamic_model, slim_of
from slimdeploy.store import open_store
from tests.conftest import geometry
from tests.forward.models import Case, relative
from tests.graph.exports import run
from tests.slim.test_refit import pictures

BUDGET = 0.3
FIXED = RidgeOptions()  # `auto` finds that nothing helps on images that are noise


@pytest.fixture(scope="module")
def case() -> Case:
    return Case("plain", "dynamo23")


def made(case: Case, scorer: PerImage = "predictor", **more: Any) -> ForwardSlim:
    request = ForwardRequest(mac_reduction=BUDGET, scorer=scorer, **{"ridge": FIXED, **more})
    lines: list[str] = []
    found = slim_dynamic(
        case.model, case.geometry, case.images, request, held_out=case.images[:4],
        progress=lines.append,
    )  # fmt: skip
    assert len(lines) == steps(case.geometry, request)
    return found


def by_torch(case: Case, scorer: PerImage = "predictor", **more: Any) -> tuple[Any, Any]:
    """What the PyTorch path finds, and the model that it makes."""
    found = dynamic_model(
        case.torch,
        case.geometry,
        case.tensor,
        DynamicRequest(scorer, BUDGET, **{"refit": FIXED, **more}),
    )
    schedule = KeepSchedule(
        model=case.geometry,
        layers=tuple(found.layers),
        dynamic=found.dynamic,
        provenance=Provenance(slimdeploy="test"),
    )
    return found, slim_of(found.model or case.torch, schedule).eval()


@pytest.mark.parametrize("scorer", get_args(PerImage))
@pytest.mark.parametrize(
    ("kind", "exporter"),
    [
        ("plain", "dynamo23"),
        ("layerscale", "dynamo20"),
        ("distilled", "script17-fused"),
        ("pre_norm", "dynamo18-fused"),
    ],
)
def test_it_is_the_model_of_the_pytorch_path(kind: str, exporter: str, scorer: PerImage) -> None:
    case = Case(kind, exporter)
    result, (wanted, reference) = made(case, scorer), by_torch(case, scorer)
    assert result.dynamic is not None
    assert [layer.keep for layer in result.layers] == [layer.keep for layer in wanted.layers]
    for one, two in zip(result.layers, wanted.layers, strict=True):
        assert one.scores == pytest.approx(two.scores)
    for weights, others in zip(result.dynamic.weights, wanted.dynamic.weights, strict=True):
        assert (weights is None) == (others is None)
        if weights is not None:
            assert weights == pytest.approx(others, abs=1e-4)
    with torch.no_grad():
        outputs, dense = reference(case.tensor), case.torch(case.tensor)
    assert relative(dense, outputs) > 0.01, "nothing was dropped"
    assert relative(run(result.model, case.images), outputs) < 2e-3


def test_the_refit_brings_it_nearer_and_is_left_out_if_so_asked(case: Case) -> None:
    one, other = made(case), made(case, reconstruct="none")
    assert one.before is not None
    assert one.after is not None
    assert one.after.head_input < one.before.head_input
    assert other.after is None
    assert other.before == one.before
    _, reference = by_torch(case, refit=None)
    with torch.no_grad():
        assert relative(run(other.model, case.images), reference(case.tensor)) < 1e-3


def test_strengths_of_the_refit_are_chosen_as_the_pytorch_path_chooses_them() -> None:
    smooth = pictures(96, 0).numpy()
    case = Case("plain", "dynamo23", smooth)
    result = made(case, ridge=None)
    _, reference = by_torch(case, refit=ridge_options(None, by_image=True))
    _, untouched = by_torch(case, refit=None)
    _, fixed = by_torch(case)
    with torch.no_grad():
        outputs = reference(case.tensor)
        others = [untouched(case.tensor), fixed(case.tensor)]
    assert relative(run(result.model, smooth), outputs) < 2e-3
    assert min(relative(other, outputs) for other in others) > 0.01


def test_options_and_the_shape_that_comes_closest(case: Case) -> None:
    plain = made(case, shape="auto")
    assert plain.shape == by_torch(case, shape="auto")[0].shape
    fused = made(case, shape=plain.shape, options=GraphOptions(optimize=True))
    assert len(fused.model.graph.node) < len(plain.model.graph.node)
    assert relative(run(fused.model, case.images), run(plain.model, case.images)) < 1e-4


def test_a_killed_run_goes_on_to_the_same_weights(case: Case, tmp_path: Any) -> None:
    request = ForwardRequest(mac_reduction=BUDGET, scorer="predictor")
    args = case.model, case.geometry, case.images, request

    def stop(line: str) -> None:
        if line == "block 2: refitted":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slim_dynamic(*args, saved=RunState(tmp_path / "run", {}), progress=stop)
    assert sorted(path.name for path in (tmp_path / "run").glob("refit-*"))
    again = slim_dynamic(*args, saved=RunState(tmp_path / "run", {}))
    assert again.model == slim_dynamic(*args).model


def test_images_in_several_parts_count_alike(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fitted() -> Any:
        with open_store() as store:
            chooses = [True, True, False]
            return fit_predictor(
                case.dense, case.geometry, case.blocks, chooses, case.images, 4, store
            )

    whole = fitted()
    monkeypatch.setattr("slimdeploy.forward.predictor._AT_A_TIME", 7)
    for one, two in zip(fitted(), whole, strict=True):
        assert one is two is None or one == pytest.approx(two, abs=1e-5)
    assert whole[2] is None


def test_heads_that_pool_are_refused() -> None:
    pooling = geometry(head_reads=(), head_pools=tuple(range(1, 17)))
    with pytest.raises(InputError, match=r"x\.onnx: its head pools over 16 tokens; --dynamic is"):
        require_single_reads(pooling, "x.onnx")
