"""Tokens that dense and slim model share, compared at several depths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slimdeploy.errors import InputError
from slimdeploy.slim.finetune import Finetuner
from slimdeploy.slim.model import SlimVit, embed, slim_block
from slimdeploy.slim.options import FinetuneOptions
from slimdeploy.slim.recovery import token_error
from slimdeploy.slim.streams import compared_layers, recorded_streams
from tests.slim.test_finetune import KEEP, batches, runner


def images() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_streams_are_those_after_the_asked_layers(make_vit: Callable[..., Any]) -> None:
    model, x = make_vit(), images()
    with torch.no_grad(), recorded_streams(model, (1, 3)) as streams:
        model(x)
    with torch.no_grad():
        first = slim_block(model.blocks[0], embed(model, x), None)
        third = slim_block(model.blocks[2], slim_block(model.blocks[1], first, None), None)
    assert len(streams) == 2
    torch.testing.assert_close(streams[0], first)
    torch.testing.assert_close(streams[1], third)
    model(x)
    assert len(streams) == 2, "nothing is read afterwards"


def test_the_slim_models_streams_hold_what_it_keeps(make_vit: Callable[..., Any]) -> None:
    model = make_vit()
    slim = SlimVit(model, KEEP)
    with torch.no_grad(), recorded_streams(model, (1, 2, 3)) as found:
        slim(images())
    assert [stream.shape[1] for stream in found] == [17, 9, 5]
    with torch.no_grad(), recorded_streams(model, (1, 2)) as wanted:
        model(images())
    # Layer 2 still reads every token, so what it keeps is exact; layer 3 is not.
    for here, there, ids in zip(found, wanted, KEEP[:2], strict=False):
        assert float(token_error(here, there[:, ids])) < 1e-10


def test_matching_tokens_brings_them_nearer(
    make_vit: Callable[..., Any], photographs: Path
) -> None:
    fields = {"epochs": 4, "distill_loss_weight": 0.0, "feature_weight": 0.0}
    errors = {}
    for weight in (0.0, 20.0):
        matched = {"token_layers": (3,)} if weight else {}
        run = runner(make_vit, photographs, token_weight=weight, **fields, **matched)
        run.run()
        x = next(iter(batches(run)))[0]
        with torch.no_grad(), recorded_streams(run.student, (3,)) as found:
            run.slim.eval()(x)
        with torch.no_grad(), recorded_streams(run.dense, (3,)) as wanted:
            run.dense(x)
        errors[weight] = float(token_error(found[0], wanted[0][:, KEEP[2]]))
    assert 0 < errors[20.0] < 0.8 * errors[0.0]


def test_layers_are_chosen_at_each_quarter_or_as_asked(
    make_vit: Callable[..., Any], photographs: Path
) -> None:
    schedule = runner(make_vit, photographs).schedule
    assert compared_layers(schedule, ()) == (1, 2, 3)
    assert compared_layers(schedule, (3, 1)) == (1, 3)
    for layer in (0, 4):
        with pytest.raises(InputError, match=f"--token-layers {layer}: must be from 1 to 3"):
            compared_layers(schedule, (layer,))


def test_layers_are_refused_before_training(
    make_vit: Callable[..., Any], photographs: Path
) -> None:
    run = runner(make_vit, photographs)
    options = FinetuneOptions(token_weight=1.0, token_layers=(9,))
    words = (run.dense, run.start, run.schedule, run.data, run.preprocessing)
    with pytest.raises(InputError, match="--token-layers 9"):
        Finetuner(*words, replace(options, workers=0))
