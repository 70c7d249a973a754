"""Numbers out of range are told with their flag, before a file is read or anything downloaded."""

from __future__ import annotations

import pytest

from slimdeploy.cli import main


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("slim --model vit_tiny_patch16_224 --data-dir absent --images 0", "--images"),
        (
            "slim --model vit_tiny_patch16_224 --data-dir absent --search-images 0",
            "--search-images",
        ),
        ("slim --model vit_tiny_patch16_224 --data-dir absent --seed -1", "--seed"),
        ("sweep --onnx absent --data-dir absent --output absent --threads 0", "--threads"),
        ("plan --model vit_tiny_patch16_224 --img-size 0", "--img-size"),
        ("verify --slim absent --images 0", "--images"),
        ("evaluate absent --data-dir absent --batch-size 0", "--batch-size"),
        ("profile --dense absent --slim absent --rounds 0", "--rounds"),
        ("quantize absent --precision int8 --images -3", "--images"),
        ("profile --dense absent --slim absent --warmup -1", "--warmup"),
        ("sweep --onnx absent --data-dir absent --multiple-of 0", "--multiple-of"),
    ],
)
def test_a_number_below_its_bound_names_the_flag(
    words: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    assert f" for {flag}. Must be >= " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("evaluate absent --dense absent --data-dir absent", "--max-top1-drop"),
        ("quantize absent --precision fp16 --data-dir absent", "--max-top1-drop"),
        ("quantize absent --precision fp16", "--max-logit-error"),
        ("sweep --onnx absent --data-dir absent --output absent", "--max-top1-drop"),
        ("profile --dense absent --slim absent", "--min-speedup"),
    ],
)
def test_a_gate_that_is_no_number_would_let_everything_pass(
    words: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words.split(), flag, "nan"])
    assert caught.value.code == 2
    assert f'"nan" for {flag}. Must be a number.' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("slim --onnx a --data-dir b --images 1.5", "1.5 is no whole number. See `slimdeploy slim"),
        ("profile --dense a --slim b --warmup 1.7", "1.7 is no whole number. See `slimdeploy prof"),
        ("sweep --onnx a --data-dir b --multiple-of 1.7", "1.7 is no whole number. See `slimdep"),
        ("slim --onnx a --data-dir b --mean 0.1 0.2", "--mean 0.1 0.2: takes 3 values with spaces"),
        ("plan --onnx a --mean 0.1,0.2,0.3", "--mean 0.1,0.2,0.3: takes 3 values with spaces"),
        ("plan --onnx a --mean 1 1 1 4", "4: no option before it takes so many values. See `slimd"),
        ("plan --onnx a --shape round", "See `slimdeploy plan --help`"),
        ("plum", "See `slimdeploy --help`"),
    ],
)
def test_what_the_parser_refuses_names_the_flag_and_the_help(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
