"""TensorRT-RTX really compiles what slimdeploy writes, on a machine with no GPU, and fuses it.

Small models of three families; the table of whole ones is docs/bench/engines.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")

from slimdeploy.engine.layers import with_constants
from slimdeploy.engine.lint import moves_only
from slimdeploy.engine.preflight import open_record
from slimdeploy.errors import InputError
from slimdeploy.graph import check_graph
from slimdeploy.measure.onnx_file import weight_types
from tests.engine.builds import built, folder
from tests.engine.models import FAMILIES, FORMS, counts, graph

CASES = [
    ("deit", "dense", "fp32"),
    ("deit", "gather", "fp32"),
    *((family, form, "fp16") for family in FAMILIES for form in FORMS),
    *(
        (family, form, precision)
        for family in FAMILIES
        for form in ("dense", "gather")
        for precision in ("bf16", "int8", "fp8")
    ),
]
HALF = [case for case in CASES if case[2] != "fp32"]
SELECTING = [case for case in HALF if case[1] in ("gather", "slice", "slice-concat")]
STORED = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8", "fp8": "float8e4m3fn"}

parametrize = pytest.mark.parametrize


@parametrize(("family", "form", "precision"), CASES)
def test_the_engine_computes_the_tokens_of_the_schedule(
    family: str, form: str, precision: str
) -> None:
    """Read from the shapes that the engine's kernels work on, not from the graph."""
    record = built(family, form, precision).record
    assert record.blocks_read_from == "engine"
    assert [(block.queries, block.keys) for block in record.blocks] == counts(form)


@parametrize(("family", "form", "precision"), HALF)
def test_attention_is_one_kernel_in_every_block(family: str, form: str, precision: str) -> None:
    made = built(family, form, precision)
    assert made.record.kernels["fused_attentions"] == made.record.kernels["blocks"] == 2
    assert "attention-not-fused" not in {finding.rule for finding in made.findings}


@parametrize(("family", "form", "precision"), SELECTING)
def test_selections_are_fused_into_their_neighbours(family: str, form: str, precision: str) -> None:
    """Each node that drops tokens is in a kernel, and that kernel computes something beside."""
    made = built(family, form, precision)
    names = {node.name for node in graph(family, form, precision).graph.node}
    selections = {n for n in names if n.endswith(".selected") and not n.startswith("/Shape")}
    kernels = [layer for layer in made.report.layers if layer.computes]
    holding = [k for k in kernels if selections & set(k.nodes)]
    assert len(selections) >= 2
    assert selections <= {node for kernel in holding for node in kernel.nodes}
    assert [kernel.name for kernel in holding if moves_only(kernel)] == []
    assert "selection-alone" not in {finding.rule for finding in made.findings}


def test_lossless_mode_copies_at_most_the_row_that_the_head_reads() -> None:
    """The compiler may leave the residual's Gather of one token alone; more would be new."""
    made = built("deit", "lossless", "fp16")
    assert made.record.kernels["selections_alone"] <= 1


def test_a_one_hot_product_is_a_kernel_of_its_own() -> None:
    """A product with a matrix is one for the compiler too: the linter says so."""
    found = {finding.rule: finding for finding in built("deit", "one-hot", "fp16").findings}
    assert "export --select slice" in found["selection-alone"].message


def test_float32_attention_is_not_fused_and_the_linter_says_so() -> None:
    for form in ("dense", "gather"):
        found = {finding.rule: finding for finding in built("deit", form).findings}
        assert found["attention-not-fused"].names == ("block 1", "block 2")
        assert "quantize --precision fp16" in found["attention-not-fused"].message


@parametrize(("family", "form", "precision"), HALF)
def test_precision_is_read_back_from_the_engine(family: str, form: str, precision: str) -> None:
    """The engine holds about as many narrow weights as the file that it was built from."""
    kind = STORED[precision]
    in_file = weight_types(graph(family, form, precision))[kind]
    in_engine = built(family, form, precision).report.precision[kind]
    assert in_engine == pytest.approx(in_file, rel=0.2)
    assert sum(built(family, form, precision).report.precision.values()) > 800_000


@parametrize("family", FAMILIES)
def test_layer_norms_are_all_there(family: str) -> None:
    made = built(family, "gather", "fp16")
    nodes = graph(family, "gather", "fp16").graph.node
    norms = {node.name for node in nodes if node.op_type == "LayerNormalization"}
    assert len(norms) >= 5
    assert norms <= {node for layer in made.report.layers for node in layer.nodes}
    assert "layer-norm-missing" not in {finding.rule for finding in made.findings}


def test_an_engine_of_half_precision_has_no_findings() -> None:
    """What `--strict` accepts: slim, by either form, as `export` and `quantize` write it."""
    assert built("deit", "gather", "fp16").findings == []
    assert built("deit", "slice", "fp16").findings == []


@parametrize("family", FAMILIES)
def test_constants_are_what_no_kernel_gives(family: str) -> None:
    """What TensorRT 10 leaves to be found out, TensorRT-RTX tells: so it can be compared."""
    made = built(family, "gather", "fp16")
    mixed = [
        replace(layer, inputs=(*layer.constants, *layer.inputs), constants=())
        for layer in made.report.layers
    ]
    assert with_constants(mixed, ["images"]) == list(made.report.layers)


def test_batches_are_a_profile_or_fixed() -> None:
    dynamic = built("deit", "gather", "fp16").record
    assert dynamic.batch == (1, 4, 8)
    assert dynamic.inputs[0].shape == (None, 3, 64, 64)
    fixed = built("deit", "gather", "fp16", dynamic=False).record
    assert fixed.batch is None
    assert fixed.inputs[0].shape == (1, 3, 64, 64)
    assert [(block.queries, block.keys) for block in fixed.blocks] == counts("slim")


def test_the_manifest_describes_the_very_bytes_that_tensorrt_gave() -> None:
    built("deit", "gather", "fp16")
    plan = folder() / "deit-gather-fp16.plan"
    manifest, record = open_record(plan)
    assert plan.read_bytes()[:4] != b"{\n  "
    assert manifest.kind == "tensorrt-rtx-engine"
    assert manifest.tokens_per_block == tuple(queries for queries, _ in counts("slim"))
    assert manifest.precision["float16"] > 800_000
    assert manifest.made_from["onnx"].path.endswith("deit-gather-fp16.onnx")
    assert record.gpu is None
    assert record.compute_capabilities == ("8.6",)


def test_what_is_built_is_a_sound_graph() -> None:
    found = check_graph(graph("deit", "gather"), counts("slim"))
    assert [tuple(block) for block in found] == counts("slim")


def test_fp8_needs_a_gpu_that_has_it(tmp_path: Path) -> None:
    import onnx

    from slimdeploy.engine.building import BuildRequest, Caches, build_engine

    path = tmp_path / "fp8.onnx"
    onnx.save(graph("deit", "gather", "fp8"), path)
    request = BuildRequest("tensorrt-rtx", batch=(1, 4, 8), compute_capabilities=("8.6",))
    with pytest.raises(InputError, match=r"fp8_e4m3, which sm86 cannot compute: build for a newer"):
        build_engine(path, request, tmp_path / "m.plan", caches=Caches(engines=False))
    assert {p.name for p in tmp_path.iterdir()} == {"fp8.onnx"}
