"""The slim model against two references: the dense model, and the dense model with keys masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slimdeploy.errors import InputError
from slimdeploy.slim.model import SlimVit, embed
from slimdeploy.slim.timm_models import check_supported, describe, load_model

VARIANTS: list[dict[str, Any]] = [
    {},
    {"distilled": True},
    {"reg_tokens": 2},
    {"init_values": 0.5},
    {"no_embed_class": True, "reg_tokens": 1},
    {"pre_norm": True},
    {"qk_norm": True},
    {"qkv_bias": False},
]


@torch.no_grad()
def masked_logits(model: Any, images: torch.Tensor, keep: list[list[int]]) -> torch.Tensor:
    """All rows computed by timm's own blocks; dropped tokens only masked as keys."""
    x = embed(model, images)
    before = list(range(x.shape[1]))
    for block, ids in zip(model.blocks, keep, strict=True):
        mask = torch.full((1, 1, x.shape[1], x.shape[1]), -torch.inf)
        mask[..., before] = 0
        x, before = block(x, attn_mask=mask), ids
    return model.forward_head(model.norm(x)[:, keep[-1]])


def pictures() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(7))


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_keeping_all_is_the_dense_model(make_vit: Callable[..., Any], variant: dict) -> None:
    model, images = make_vit(**variant), pictures()
    every = list(range(16 + model.num_prefix_tokens))
    with torch.no_grad():
        assert close(SlimVit(model, [every] * 4)(images), model(images))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_lossless_mode_is_the_dense_model(make_vit: Callable[..., Any], variant: dict) -> None:
    model, images = make_vit(**variant), pictures()
    every = list(range(16 + model.num_prefix_tokens))
    reads = list(describe(model, "small").head_reads)
    with torch.no_grad():
        assert close(SlimVit(model, [every] * 3 + [reads])(images), model(images))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_dropped_tokens_are_tokens_masked_as_keys(
    make_vit: Callable[..., Any], data: st.DataObject
) -> None:
    variant = data.draw(st.sampled_from(VARIANTS))
    model = make_vit(**variant)
    reads = set(describe(model, "small").head_reads)
    before, keep = set(range(16 + model.num_prefix_tokens)), []
    for _ in range(4):
        before = reads | data.draw(st.sets(st.sampled_from(sorted(before))))
        keep.append(sorted(before))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = SlimVit(model, keep)(images)
    assert close(found, masked_logits(model, images, keep))


def test_describe_reads_off_the_geometry(make_vit: Callable[..., Any]) -> None:
    found = describe(make_vit(reg_tokens=2), "small")
    assert found.prefix == ("class", "register", "register")
    assert (found.depth, found.width, found.heads, found.mlp_width) == (4, 48, 3, 96)
    assert (found.grid, found.tokens, found.num_classes) == ((4, 4), 19, 5)
    assert describe(make_vit(distilled=True), "small").head_reads == (0, 1)


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ({"global_pool": "avg"}, "pools with 'avg'"),
        ({"global_pool": "map", "class_token": False}, "attention-pooling head"),
    ],
)
def test_models_it_would_compute_wrongly_are_refused(
    make_vit: Callable[..., Any], variant: dict, reason: str
) -> None:
    with pytest.raises(InputError, match=f"--model small: .*{reason}"):
        check_supported(make_vit(**variant), "small")


def test_other_architectures_are_refused(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="--model vit_tiny_pach16_224: timm has no model of that"):
        load_model("vit_tiny_pach16_224", None)
    import timm

    with pytest.raises(InputError, match="is a ResNet, not a plain vision transformer"):
        check_supported(timm.create_model("resnet10t"), "resnet10t")
    with pytest.raises(InputError, match="ParallelScalingBlock"):
        check_supported(timm.create_model("vit_tiny_patch16_224", block_fn=_parallel()), "vit")


def _parallel() -> Any:
    from timm.models.vision_transformer import ParallelScalingBlock

    return ParallelScalingBlock
