"""MACs counted on graphs small enough to count by hand, and on DeiT."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from slimdeploy.errors import InputError
from slimdeploy.measure.macs import count_macs


def parse(body: str, opset: int = 23) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {body}')


@pytest.mark.parametrize(
    ("body", "macs"),
    [
        (  # 2 groups: each of 8 x 5 x 5 outputs reads 2 channels of 3 x 3
            "g (float[B, 4, 5, 5] x, float[8, 2, 3, 3] w) => (float[B, 8, 5, 5] y) "
            "{ y = Conv<group = 2, pads = [1, 1, 1, 1]> (x, w) }",
            8 * 25 * 2 * 9,
        ),
        ("g (float[B, 7, 4] x, float[4, 6] w) => (float[B, 7, 6] y) { y = MatMul (x, w) }", 168),
        ("g (float[B, 4] x, float[6, 4] w) => (float[B, 6] y) { y = Gemm<transB = 1> (x, w) }", 24),
        (
            "g (float[4, B] x, float[4, 6] w) => (float[B, 6] y) { y = Gemm<transA = 1> (x, w) }",
            None,
        ),
        (  # 3 heads, 5 queries, 7 keys: QK' over 8, PV over 2
            "g (float[B,3,5,8] q, float[B,3,7,8] k, float[B,3,7,2] v) => (float[B,3,5,2] y) "
            "{ y = Attention (q, k, v) }",
            3 * 5 * 7 * (8 + 2),
        ),
        (
            "g (float[B,5,24] q, float[B,7,24] k, float[B,7,6] v) => (float[B,5,6] y) "
            "{ y = Attention<q_num_heads = 3, kv_num_heads = 3> (q, k, v) }",
            3 * 5 * 7 * (8 + 2),
        ),
    ],
)
def test_counts_by_hand(body: str, macs: int | None) -> None:
    if macs is None:  # the dimension that varies is set to 1 only where it leads
        with pytest.raises(InputError, match="the shape of 'x' at Gemm 'y' cannot be inferred"):
            count_macs(parse(body))
        return
    counted = count_macs(parse(body))
    assert counted.total == counted.nodes[0].macs == macs
    assert counted.batch == 1
    assert counted.uncounted == ()


def test_the_model_given_is_left_as_it_was() -> None:
    model = parse("g (float[B, 4] x, float[4, 6] w) => (float[B, 6] y) { y = MatMul (x, w) }")
    before = model.SerializeToString()
    count_macs(model)
    assert model.SerializeToString() == before


def test_a_fixed_batch_counts_as_it_is_and_stale_shapes_do_not() -> None:
    model = parse(
        "g (float[8, 4] x, float[4, 6] w) => (float[8, 6] z) <float[99, 99] y> "
        "{ y = MatMul (x, w)  z = Relu (y) }"
    )
    counted = count_macs(model)
    assert (counted.batch, counted.total) == (8, 8 * 4 * 6)


def test_what_is_not_understood_is_listed_not_guessed() -> None:
    model = parse(
        "g (float[B, 4] x, float[4, 6] w) => (float[B, 6] y) "
        '{ y = Einsum<equation = "bi,ij->bj"> (x, w) }'
    )
    counted = count_macs(model)
    assert (counted.total, counted.uncounted) == (0, ("y",))


def test_another_domains_attention_is_not_taken_for_onnx_s() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]> '
        "g (float[B, 4, 6] x, float[6, 18] w, float[18] b) => (float[B, 4, 6] y) "
        "{ y = com.microsoft.Attention<num_heads = 2> (x, w, b) }"
    )
    assert count_macs(model).uncounted == ("y",)


def test_refuses_what_is_not_onnx(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    with pytest.raises(InputError, match=r"x\.onnx: no such file"):
        count_macs(path)
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"x\.onnx: not a complete ONNX model"):
        count_macs(path)


def exported(name: str, depth: int, opset: int, path: Path) -> Path:
    import timm
    import torch

    model = timm.create_model(name, depth=depth).eval()
    images, batch = torch.zeros(2, 3, 224, 224), ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        model, (images,), path, dynamo=True, opset_version=opset, dynamic_shapes=batch
    )
    return path


@pytest.mark.parametrize("opset", [18, 23])
def test_an_exported_transformer_costs_what_the_formula_says(opset: int, tmp_path: Path) -> None:
    n, d = 197, 192
    block = 12 * n * d * d + 2 * n * n * d
    path = exported("deit_tiny_patch16_224", 1, opset, tmp_path / "m.onnx")
    assert count_macs(path).total == 196 * 768 * d + block + 1000 * d


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("deit_tiny_patch16_224", 1.2537),
        ("deit_small_patch16_224", 4.5989),
        ("deit_base_patch16_224", 17.5638),
    ],
)
def test_deit_costs_what_the_literature_says(name: str, gmacs: float, tmp_path: Path) -> None:
    path = exported(name, 12, 23, tmp_path / "m.onnx")
    assert count_macs(path).total / 1e9 == pytest.approx(gmacs, abs=5e-5)
