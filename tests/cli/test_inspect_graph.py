"""What `inspect` says of an ONNX file beside its blocks: its manifest, its build, its MACs."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from slimdeploy.cli import main
from slimdeploy.manifest import write_manifest
from tests.cli.commands import ORT, error_line, saved
from tests.graph.exports import export
from tests.graph.text import model as text_model
from tests.graph.vit_text import TOKENS, vit


def shown(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> str:
    main(["inspect", str(path), *options])
    return capsys.readouterr().out


@pytest.mark.parametrize("part", ["m.onnx", "w.bin"])
def test_a_graph_that_its_manifest_does_not_describe(
    folder: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, beside = folder / "m.onnx", {"save_as_external_data": True, "location": "w.bin"}
    onnx.save(vit(), path, **beside, size_threshold=0)
    write_manifest(path, kind="slim-onnx", made_from={}, command=())
    assert json.loads(shown(capsys, path, "--json"))["manifest"]["kind"] == "slim-onnx"
    if part == "m.onnx":
        saved(vit(seed=1), path)
    else:
        data = bytearray((folder / part).read_bytes())
        (folder / part).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    line = error_line(capsys, 1, "inspect", path)
    assert f"{part}: is not the file its manifest describes (sha256" in line


def test_the_build_of_an_optimised_model_is_shown(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = good.parent / "fast.onnx"
    main(["build", str(good), *ORT, "--output", str(output)])
    built = capsys.readouterr().out.splitlines()[1:]
    assert any("runs on       CPUExecutionProvider" in line for line in built)
    assert set(built) <= set(shown(capsys, output).splitlines())


def test_macs_that_could_not_be_counted_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = "  ".join(f'b{i} = Einsum<equation="bij,bjk->bik">(a, a)' for i in range(4))
    body = f"a = MatMul(x, x)  {sums}  y = Sum(b0, b1, b2, b3)"
    model = text_model("float[B,4,4] x => float[B,4,4] y", body)
    path = saved(model, folder / "m.onnx")
    assert f"{path}: 0.0000 GMAC an image and more: 4 nodes are not counted (" in shown(
        capsys, path
    )
    found = json.loads(shown(capsys, path, "--json"))
    assert (found["macs"], len(found["uncounted"])) == (64, 4)


def test_macs_of_a_fixed_batch_are_those_of_an_image(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    macs = []
    for batch in (1, 4):
        model = vit()
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
        path = saved(model, folder / f"{batch}.onnx")
        macs.append(json.loads(shown(capsys, path, "--json"))["macs"])
    assert macs[0] == macs[1] > TOKENS


def test_whether_images_could_decide_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {}
    for kind in ("plain", "average"):
        path = saved(export(kind, "dynamo18", True), folder / f"{kind}.onnx")
        (told[kind],) = (x for x in shown(capsys, path).splitlines() if "by image" in x)
        found = json.loads(shown(capsys, path, "--json"))["by_image"]
        assert (found["merge"] is None) == (kind == "plain")
    assert told["plain"].split(maxsplit=2)[2] == "--dynamic merge, --dynamic predictor"
    assert (
        told["average"].split(maxsplit=2)[2]
        == "not merge or predictor: its head pools over 16 tokens"
    )
