"""Fine-tuned weights come back from what they add to the pretrained ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from slimdeploy.errors import InputError
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.slim.checkpoint import Checkpoint, save_weights
from tools.low_rank import factors, pack, pack_file, unpack, unpack_file

NAME, SIZE = "vit_tiny_patch16_224", 64
State = dict[str, torch.Tensor]


@pytest.fixture
def base() -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(48, 32, generator=generator).half().float(),
        "bias": torch.randn(48, generator=generator).half().float(),
        "frozen": torch.randn(48, 32, generator=generator).half().float(),
    }


def tuned(base: State, rank: int) -> State:
    """The base with an addition of so many directions to its matrix, and one to its vector."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(n, rank, generator=generator) for n in (48, 32))
    return {
        **base,
        "weight": base["weight"] + 0.1 * left @ right.T,
        "bias": base["bias"] + 1,
        "head": torch.ones(2, 48),
    }


def test_an_addition_of_few_directions_comes_back(base: State) -> None:
    wanted = tuned(base, rank=4)
    found = unpack(base, pack(base, wanted, rank=4))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=5e-3)


def test_only_what_changed_is_kept(base: State) -> None:
    kept = pack(base, tuned(base, rank=4), rank=4)
    assert sorted(kept) == ["bias", "head", "weight.left", "weight.right"]
    assert kept["weight.left"].shape == (48, 4)
    assert all(value.dtype == torch.float16 for value in kept.values())


def test_what_is_cut_off_is_the_smallest_part(base: State) -> None:
    added = tuned(base, rank=8)["weight"] - base["weight"]
    left, right = factors(added, rank=4)
    lost = torch.linalg.svdvals(added.double() - left.double() @ right.double())
    wanted = torch.linalg.svdvals(added.double())[4:8]
    torch.testing.assert_close(lost[:4], wanted, rtol=2e-2, atol=1e-3)


def test_files_make_the_round(tmp_path: Path) -> None:
    first = timm.create_model(NAME, img_size=SIZE, num_classes=0)
    base = tmp_path / "base.safetensors"
    save_file({k: v.half() for k, v in first.state_dict().items()}, base)
    model = timm.create_model(NAME, img_size=SIZE, num_classes=2)
    model.load_state_dict(Checkpoint.read(base).state, strict=False)
    with torch.no_grad():
        model.blocks[3].attn.qkv.weight[:, 0] += 1
    sizes = Preprocessing(
        input_size=(3, SIZE, SIZE), crop_pct=1.0, interpolation="bicubic", mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )  # fmt: skip
    dense, packed, whole = (tmp_path / f"{n}.safetensors" for n in ("dense", "packed", "whole"))
    save_weights(model, dense, name=NAME, preprocessing=sizes)
    pack_file(dense, output=packed, base=base, rank=1)
    unpack_file(packed, output=whole, base=base)
    assert packed.stat().st_size < dense.stat().st_size / 50
    wanted, found = Checkpoint.read(dense), Checkpoint.read(whole)
    assert found.preprocessing == sizes
    assert found.metadata["num_classes"] == "2"
    for name, value in wanted.state.items():
        torch.testing.assert_close(found.state[name], value, rtol=2e-3, atol=1e-3)


def test_weights_that_say_nothing_of_themselves_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"head.bias": torch.zeros(2)}, path, {"slimdeploy": json.dumps({})})
    with pytest.raises(InputError, match=r"odd\.safetensors: its metadata names no model"):
        pack_file(path, output=tmp_path / "packed.safetensors")
