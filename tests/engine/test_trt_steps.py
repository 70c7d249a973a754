"""The steps of a build on a GPU, and of running an engine, as far as a machine without one goes.

TensorRT itself has never run here. Its place is taken by TensorRT-RTX's bindings where they will
do, which are of the same family, and by fakes at the adapter's edge where a GPU would be touched;
`test_trt_api` holds what is called to the real bindings.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.engine import open_engine
from slimdeploy.engine.building import with_tensorrt
from slimdeploy.engine.building.report import BuildReport
from slimdeploy.engine.building.request import BuildRequest
from slimdeploy.engine.building.with_tensorrt import TensorRTBuild
from slimdeploy.engine.gpu import Gpu
from slimdeploy.engine.host import Host
from slimdeploy.engine.protocol import TensorInfo
from slimdeploy.engine.trt import runner
from slimdeploy.errors import InputError, MissingError
from slimdeploy.manifest import write_manifest
from tests.engine.fakes import beyond_bindings, beyond_object
from tests.engine.test_preflight import record
from tests.graph.text import model as text_model

# TensorRT-RTX's timing caches do nothing, and say so.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ORIN = Gpu("Orin", (8, 7), (12, 6), 2_000_000_000)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    weights = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    onnx.save(text_model("float[B,8] x => float[B,8] y", "y = MatMul(x, w)", w=weights), path)
    return path


@pytest.fixture
def on_an_orin(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX's bindings in TensorRT's place, and a GPU that is not there."""
    trt = pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    monkeypatch.setattr(with_tensorrt, "load_bindings", lambda flavour: trt)
    monkeypatch.setattr(with_tensorrt, "find_gpu", lambda: ORIN)


def build(
    small: Path, found: BuildReport | None = None, **request: Any
) -> tuple[BuildReport, list[float]]:
    shares: list[float] = []
    steps = TensorRTBuild(
        small,
        BuildRequest("tensorrt", batch=(1, 2, 4), **request),
        timing_cache=None,
        cache_folder=small.parent / "cache",
        progress=lambda doing, share: shares.append(share),
    )
    report = steps.run(small.parent / "m.plan", lambda version, gpu: found)
    return BuildReport.from_json(report.to_json()), shares


@pytest.mark.usefixtures("on_an_orin")
def test_a_build_for_the_gpu_that_is_there(small: Path) -> None:
    report, shares = build(small, workspace_gb=100.0)
    assert report.targets == "sm_87"
    assert report.gpu == ORIN
    assert report.workspace_gb == pytest.approx(1.8)
    assert report.notes == ("workspace lowered from 100 to 1.80 GB: no more is free",)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    timings = next((small.parent / "cache" / "timing").glob("*.cache"))
    assert "sm_87" in timings.name
    assert (small.parent / "m.plan").stat().st_size > 1000

    timings.write_bytes(b"damaged")
    report, _ = build(small)
    assert report.notes == (
        f"{timings}: damaged (its hash differs); built without it, and written anew",
    )
    assert timings.read_bytes() != b"damaged"
    assert build(small)[0].notes == ()


@pytest.mark.usefixtures("on_an_orin")
def test_an_engine_that_was_built_without_memory_is_built_anew(small: Path) -> None:
    old = BuildReport("1", ORIN, "sm_87", (), (), (), workspace_gb=0.5, cached=True)
    report, _ = build(small, old)
    assert report.workspace_gb == pytest.approx(1.8)
    assert report.notes == (
        "built anew: the engine in the cache had 0.50 GB of workspace, 1.80 are free now",
    )
    assert build(small, replace(old, workspace_gb=1.0))[0].workspace_gb == 1.0
    assert build(small, replace(old, workspace_gb=None))[0].workspace_gb is None
    assert build(small, old, workspace_gb=0.5)[0] == old


@pytest.mark.usefixtures("on_an_orin")
def test_a_limit_that_others_impose_is_noted(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = replace(ORIN, total_bytes=8_000_000_000)
    monkeypatch.setattr(with_tensorrt, "find_gpu", lambda: busy)
    assert build(small)[0].notes == (
        "workspace limited to 1.80 GB, as 2.00 of 8.00 GB are free: with more, faster kernels may "
        "be found",
    )
    assert build(small, workspace_gb=1.0)[0].notes == ()
    monkeypatch.setattr(with_tensorrt, "find_gpu", lambda: replace(busy, free_bytes=6_000_000_000))
    assert build(small)[0].notes == ()


@pytest.mark.usefixtures("on_an_orin")
def test_timings_that_cannot_be_kept_cost_no_engine(small: Path) -> None:
    (small.parent / "cache").write_text("a file where a folder should be")
    report, _ = build(small)
    assert len(report.notes) == 1
    assert report.notes[0].startswith("timings were not kept: ")


@pytest.mark.usefixtures("on_an_orin")
def test_a_level_that_this_version_lacks_is_named(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt_rtx

    level = SimpleNamespace(AMPERE_PLUS=tensorrt_rtx.HardwareCompatibilityLevel.AMPERE_PLUS)
    monkeypatch.setattr(tensorrt_rtx, "HardwareCompatibilityLevel", level)
    with pytest.raises(InputError, match=r"has no such level; use ampere-plus, or a newer"):
        build(small, hardware_compatible="same-compute-capability")
    build(small, hardware_compatible="ampere-plus")


def test_without_a_driver_no_builder_is_made(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu() -> Gpu:
        raise MissingError("no driver")

    monkeypatch.setattr(with_tensorrt, "load_bindings", lambda flavour: object())
    monkeypatch.setattr(with_tensorrt, "find_gpu", no_gpu)
    with pytest.raises(MissingError, match=r"--backend tensorrt: no driver, or use --backend"):
        build(small)


@pytest.mark.usefixtures("on_an_orin")
def test_an_engine_that_cannot_be_read_back_is_kept(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise InputError("no memory")

    monkeypatch.setattr(with_tensorrt.build, "engine_layers", refuse)
    report, _ = build(small)
    assert report.notes == ("the engine's kernels were not read: no memory",)
    assert report.layers == ()
    assert (small.parent / "m.plan").is_file()


# --- running an engine: fakes of the runtime and of the GPU's memory ---------------------------


class Device:
    """Memory that is not on a GPU, with what is called of polygraphy.cuda.DeviceArray.

    Not its `dtype`: from polygraphy 0.55 on that is no type of numpy's.
    """

    live: dict[int, Device] = {}  # noqa: RUF012 (the fake driver's table of addresses)

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self._dtype, self.ptr = tuple(shape), np.dtype(dtype), id(self)
        self.host = np.zeros(shape, dtype)
        self.live[self.ptr] = self

    def resize(self, shape: tuple[int, ...]) -> None:
        self.shape = tuple(shape)
        self.host = np.zeros(shape, self._dtype)

    def copy_from(self, host_buffer: Any, stream: Any) -> None:
        assert host_buffer.flags["C_CONTIGUOUS"]
        assert host_buffer.dtype == self._dtype
        self.host[...] = host_buffer

    def copy_to(self, host_buffer: Any, stream: Any) -> None:
        assert host_buffer.dtype == self._dtype
        host_buffer[...] = self.host

    def free(self) -> None:
        del self.live[self.ptr]


class Stream:
    ptr = 7

    def synchronize(self) -> None: ...

    def free(self) -> None: ...


class Context:
    """An engine that doubles its input."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == Stream.ptr
        found = Device.live[self.addresses["x"]].host
        Device.live[self.addresses["y"]].host[...] = 2 * found
        return True


class Runtime:
    loads = True

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        if not self.loads:
            self.logger.log(FakeLogger.ERROR, "magic tag does not match\nand more")
            return None
        return SimpleNamespace(create_execution_context=Context)


class FakeLogger:
    INTERNAL_ERROR, ERROR = 0, 1


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine of two tensors on an Orin, with fakes of all that would touch a GPU."""
    trt = SimpleNamespace(ILogger=FakeLogger, Runtime=Runtime, __version__="10.3.0")
    cuda = ModuleType("polygraphy.cuda")
    cuda.DeviceArray, cuda.Stream = Device, Stream  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "polygraphy", ModuleType("polygraphy"))
    monkeypatch.setitem(sys.modules, "polygraphy.cuda", cuda)
    monkeypatch.setattr(runner, "load_bindings", lambda flavour: trt)
    monkeypatch.setattr(runner, "find_gpu", lambda: ORIN)
    host = Host("linux-aarch64", ORIN, {"tensorrt": "10.3.0"})
    monkeypatch.setattr(runner, "this_host", lambda: host)
    monkeypatch.setattr(Runtime, "loads", True)
    tensors = [{"name": n, "shape": (None, 3), "dtype": "float32"} for n in "xy"]
    made = record(inputs=tensors[:1], outputs=tensors[1:])
    path = tmp_path / "m.plan"
    path.write_bytes(b"an engine")
    results = {"build": made.model_dump(mode="json")}
    write_manifest(path, kind="tensorrt-engine", made_from={}, command=(), results=results)
    return path


def test_the_fakes_have_nothing_that_the_bindings_lack() -> None:
    assert beyond_bindings(Context, "IExecutionContext") == set()
    assert beyond_bindings(Runtime, "Runtime", own=("loads",)) == set()
    assert beyond_bindings(FakeLogger, "ILogger") == set()


def test_the_fakes_have_nothing_that_polygraphy_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of no bytes allocates nothing, and a stream only asks the driver for one."""
    pytest.importorskip("polygraphy", reason="the extra tensorrt-rtx is not installed")
    from polygraphy.cuda import DeviceArray
    from polygraphy.cuda import Stream as RealStream

    driver = SimpleNamespace(create_stream=lambda: 7)
    monkeypatch.setattr("polygraphy.cuda.cuda.wrapper", lambda: driver)
    monkeypatch.setattr(Device, "live", {})
    real = DeviceArray(shape=(0, 3), dtype=np.dtype("float32"))
    assert beyond_object(Device((0, 3), "float32"), real, own=("live", "host")) == set()
    assert beyond_object(Stream(), RealStream()) == set()


def test_a_fake_that_knows_too_much_is_noticed() -> None:
    class Real:
        def take(self, item: int) -> None: ...

    class Fake:
        def take(self, items: int) -> None: ...

        def get_tensor_shape(self) -> None: ...

        def invented(self) -> None: ...

    assert beyond_bindings(Fake, "IExecutionContext", own=("take",)) == {
        "IExecutionContext.invented"
    }
    assert beyond_object(Fake(), Real(), own=("invented",)) == {"take", "get_tensor_shape"}


def test_an_engine_is_run(plan: Path) -> None:
    rng = np.random.default_rng(0)
    with open_engine(plan) as engine:
        assert engine.inputs == (TensorInfo("x", (None, 3), "float32"),)
        for size in (2, 8, 1):
            images = rng.normal(size=(3, size)).astype(np.float32).T  # not contiguous
            np.testing.assert_array_equal(engine.infer(images)["y"], 2 * images)
        assert engine.describe().to_json() == {
            "artifact": "m.plan",
            "runtime": "tensorrt",
            "version": "10.3.0",
            "provider": "Orin",
            "threads": 0,
        }
    assert Device.live == {}
    with pytest.raises(InputError, match=r"m\.plan: this engine is closed; open it again"):
        engine.infer(images)


@pytest.mark.parametrize("size", [0, 9])
def test_a_batch_outside_the_profile(plan: Path, size: int) -> None:
    with open_engine(plan) as engine, pytest.raises(InputError) as caught:
        engine.infer(np.zeros((size, 3), np.float32))
    assert str(caught.value) == (
        f"m.plan: a batch of {size} is outside its profile, 1 to 8: give such batches, or build "
        "it with another --min-batch and --max-batch"
    )


def test_wrong_arrays_never_reach_the_gpu(plan: Path) -> None:
    with open_engine(plan) as engine, pytest.raises(InputError, match="convert to float32"):
        engine.infer(np.zeros((2, 3)))


def test_an_engine_that_tensorrt_refuses(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "loads", False)
    with pytest.raises(InputError, match=r"m\.plan: TensorRT cannot load it: magic tag") as caught:
        open_engine(plan)
    assert "\n" not in str(caught.value)


def test_an_engine_without_memory(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimpleNamespace(create_execution_context=lambda: None)
    monkeypatch.setattr(Runtime, "deserialize_cuda_engine", lambda self, plan: engine)
    with pytest.raises(MissingError, match=r"not enough GPU memory to run it"):
        open_engine(plan)


def test_tensors_that_arrays_cannot_hold(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = record(inputs=[{"name": "x", "shape": (1,), "dtype": "bfloat16"}])
    results = {"build": made.model_dump(mode="json")}
    write_manifest(plan, kind="tensorrt-engine", made_from={}, command=(), results=results)
    with pytest.raises(InputError, match=r"'x' is bfloat16, which arrays here cannot hold"):
        open_engine(plan)
