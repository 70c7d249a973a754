"""Engines and timings that were computed before: found, not found, damaged."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from slimdeploy.engine.building import build_engine
from slimdeploy.engine.building.cache import (
    EngineCache,
    engine_key,
    read_timing_cache,
    timing_cache_path,
    write_timing_cache,
)
from slimdeploy.engine.building.request import BuildRequest
from slimdeploy.engine.building.worker import Engines
from slimdeploy.engine.gpu import Gpu
from slimdeploy.engine.trt.build import timing_cache_bytes, use_timing_cache
from slimdeploy.errors import InputError
from tests.engine.fakes import beyond_bindings
from tests.graph.vit_text import vit

ORIN = Gpu("NVIDIA Orin (nvgpu)", (8, 7), (12, 6), 6_000_000_000)
MODEL = {"": "a" * 64}
REQUEST = BuildRequest("tensorrt", batch=(1, 4, 8))


def test_the_key_holds_all_that_changes_an_engine() -> None:
    key = engine_key(MODEL, REQUEST, "10.3.0", ORIN)
    others = [
        engine_key({"": "b" * 64}, REQUEST, "10.3.0", ORIN),
        engine_key({**MODEL, "w.bin": "c" * 64}, REQUEST, "10.3.0", ORIN),
        engine_key(MODEL, replace(REQUEST, batch=(1, 4, 16)), "10.3.0", ORIN),
        engine_key(MODEL, replace(REQUEST, workspace_gb=1.0), "10.3.0", ORIN),
        engine_key(MODEL, replace(REQUEST, optimization_level=5), "10.3.0", ORIN),
        engine_key(MODEL, replace(REQUEST, version_compatible=True), "10.3.0", ORIN),
        engine_key(MODEL, REQUEST, "10.16.1", ORIN),
        engine_key(MODEL, REQUEST, "10.3.0", replace(ORIN, name="AGX Orin")),
        engine_key(MODEL, REQUEST, "10.3.0", None),
    ]
    assert len({key, *others}) == len(others) + 1
    driver = replace(ORIN, driver_cuda=(13, 0), free_bytes=1)
    assert engine_key(MODEL, REQUEST, "10.3.0", driver) == key


@pytest.fixture
def kept(tmp_path: Path) -> EngineCache:
    engine = tmp_path / "new.plan"
    engine.write_bytes(b"engine")
    cache = EngineCache(tmp_path / "engines")
    cache.add("key", engine, '{"version": "1"}')
    return cache


def test_an_engine_comes_back_with_its_report(kept: EngineCache, tmp_path: Path) -> None:
    target = tmp_path / "m.plan"
    assert kept.find("other", target) is None
    assert not target.exists()
    assert kept.find("key", target) == '{"version": "1"}'
    assert target.read_bytes() == b"engine"
    assert {path.name for path in kept.folder.iterdir()} == {"key"}


@pytest.mark.parametrize("file", ["engine", "report.json", "sha256"])
@pytest.mark.parametrize("damage", ["emptied", "cut off", "gone"])
def test_a_damaged_engine_is_thrown_away(
    kept: EngineCache, file: str, damage: str, tmp_path: Path
) -> None:
    path = kept.folder / "key" / file
    keep = {"emptied": 0, "cut off": path.stat().st_size // 2}
    path.write_bytes(path.read_bytes()[: keep[damage]]) if damage in keep else path.unlink()
    target = tmp_path / "m.plan"
    assert kept.find("key", target) is None
    assert not target.exists()
    assert (file, damage) == ("engine", "gone") or not (kept.folder / "key").exists()


@pytest.mark.parametrize("text", ["", "[]", "null", '{"version": "1"}', '{"gpu": 1}', "not JSON"])
def test_a_report_that_tells_of_no_build_is_thrown_away(
    kept: EngineCache, text: str, tmp_path: Path
) -> None:
    """Whole, and yet not as this version writes it."""
    task = {"cache_folder": str(tmp_path), "use_cache": True, "sha256": MODEL}
    engines, key = (
        Engines(task, REQUEST, tmp_path / "m.plan"),
        engine_key(MODEL, REQUEST, "1", None),
    )
    kept.add(key, tmp_path / "new.plan", text)
    assert engines.find("1", None) is None
    assert not (kept.folder / key).exists()
    assert not (tmp_path / "m.plan").exists()


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    model = tmp_path / "m.onnx"
    onnx.save(vit(), model)
    with pytest.raises(InputError, match=r"no home folder to keep engines in: .* --cache-dir$"):
        build_engine(model, BuildRequest("tensorrt-rtx"), tmp_path / "m.plan")
    assert build_engine(model, BuildRequest("onnxruntime"), tmp_path / "f.onnx").report.version


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    engine = tmp_path / "new.plan"
    engine.write_bytes(b"x" * 10)
    cache = EngineCache(tmp_path / "engines", limit_bytes=25)
    for age, key in enumerate(("a", "b")):
        cache.add(key, engine, "{}")
        os.utime(cache.folder / key, (age, age))
    cache.find("a", tmp_path / "m.plan")  # used just now
    cache.add("c", engine, "{}")
    assert {path.name for path in cache.folder.iterdir()} == {"a", "c"}
    engine.write_bytes(b"x" * 100)
    cache.add("big", engine, "{}")  # larger than the limit: it alone stays
    assert {path.name for path in cache.folder.iterdir()} == {"big"}


def test_timings_have_a_file_for_each_version_and_gpu(tmp_path: Path) -> None:
    path = timing_cache_path(tmp_path, "10.3.0", ORIN)
    assert path == tmp_path / "timing" / "tensorrt-10.3.0-sm_87-NVIDIA-Orin--nvgpu-.cache"
    assert timing_cache_path(tmp_path, "10.16.1", ORIN) != path


def test_timings_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "t.cache"
    assert read_timing_cache(path) == (b"", "")
    write_timing_cache(path, b"timings")
    assert read_timing_cache(path) == (b"timings", "")


def test_damaged_timings_are_left_aside_and_named(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    write_timing_cache(path, b"timings")
    path.write_bytes(b"timingz")
    data, problem = read_timing_cache(path)
    assert data == b""
    assert problem == f"{path}: damaged (its hash differs); built without it, and written anew"


def test_timings_of_another_program_are_tried(tmp_path: Path) -> None:
    path = tmp_path / "trtexec.cache"
    path.write_bytes(b"theirs")
    assert read_timing_cache(path) == (b"theirs", "")


def test_timings_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    write_timing_cache(path, b"timings")
    (tmp_path / "t.cache.sha256").unlink()
    (tmp_path / "t.cache.sha256").mkdir()
    assert read_timing_cache(path)[0] == b"timings"
    os.remove(path)
    os.symlink("/proc/self/mem", path)  # opens, and cannot be read from its start
    data, problem = read_timing_cache(path)
    assert data == b""
    assert "cannot be read" in problem


class FakeConfig:
    """A fake, at the adapter's edge: a builder's configuration that takes or refuses a cache.

    Its methods are held to those that the real bindings are known to have, below.
    """

    def __init__(self, accepts: bool, made: bool = True) -> None:
        self.accepts, self.made, self.in_use = accepts, made, b"?"

    def create_timing_cache(self, data: bytes) -> bytes | None:
        return data if self.made or not data else None

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if cache and not self.accepts:
            return False
        self.in_use = cache
        return True

    def get_timing_cache(self) -> None:
        return None


def test_the_fake_configuration_has_nothing_that_the_bindings_lack() -> None:
    assert beyond_bindings(FakeConfig, "IBuilderConfig") == set()


@pytest.mark.parametrize(
    ("config", "taken", "in_use"),
    [
        (FakeConfig(accepts=True), True, b"timings"),
        (FakeConfig(accepts=False), False, b""),
        (FakeConfig(accepts=True, made=False), False, b""),
    ],
    ids=["taken", "refused", "not even read"],
)
def test_a_refused_cache_is_replaced_by_an_empty_one(
    config: FakeConfig, taken: bool, in_use: bytes
) -> None:
    assert use_timing_cache(config, b"timings") is taken
    assert config.in_use == in_use
    assert timing_cache_bytes(config) == b""


def test_the_real_bindings_take_a_cache_that_is_no_cache() -> None:
    """TensorRT-RTX warns and starts empty; its caches do nothing, so only the calls are proven."""
    trt = pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    import subprocess
    import sys

    code = f"""
import warnings; warnings.simplefilter("ignore")
import {trt.__name__} as trt
from slimdeploy.engine.trt.build import timing_cache_bytes, use_timing_cache
config = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR)).create_builder_config()
assert use_timing_cache(config, b"no timing cache at all")
assert len(timing_cache_bytes(config)) > 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
