"""Builds that fail on the way: one line, its exit code, nothing half-written."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.cli import main
from tests.cli.commands import ORT, ROOT, RTX, checked_line, ended, error_line, left, run, saved
from tests.graph.text import model as text_model
from tests.graph.vit_text import vit


def unsupported_operator(folder: Path) -> Path:
    model = text_model("float[B,4] x => float[B,4] y", "y = Identity(x)")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Sparkle", "my.ops"
    model.graph.node[0].name = "glitter"
    model.opset_import.add(domain="my.ops", version=1)
    return saved(model, folder / "m.onnx")


def fused_attention_in_float32(folder: Path) -> Path:
    signature = "float[B,2,6,16] q, float[B,2,6,16] k, float[B,2,6,16] v => float[B,2,6,16] y"
    model = text_model(signature, "y = Attention(q, k, v)", opset=23)
    model.ir_version = 10
    return saved(model, folder / "m.onnx")


def eight_bit_floats(folder: Path) -> Path:
    """A product of 8-bit floats, which only GPUs from compute capability 8.9 on have."""
    body = """
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s)
        p = QuantizeLinear(w, s, z)  e = DequantizeLinear(p, s)
        y = MatMul(d, e)
    """
    model = text_model("float[B,32] x => float[B,32] y", body, opset=19)
    model.ir_version = 9
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(32, 32)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "s"))
    zero = onnx.helper.make_tensor("z", onnx.TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    model.graph.initializer.append(zero)
    return saved(model, folder / "m.onnx")


def plain(folder: Path) -> Path:
    return saved(vit(), folder / "m.onnx")


REFUSED: list[tuple[Callable[[Path], Path], tuple[str, ...], int, str]] = [
    (unsupported_operator, (), 2, "node 'glitter' (Sparkle): TensorRT has no such operator here"),
    (fused_attention_in_float32, (), 2, "Attention operators have no kernel in this precision"),
    (eight_bit_floats, ("--compute-capability", "8.6"), 2, "build for a newer GPU, as --compute"),
    (plain, ("--compute-capability", "7.5"), 2, "cannot be compiled for Turing"),
    (plain, ("--workspace-gb", "0.000000001"), 3, "not enough memory to build it (workspace 1e-09"),
    (plain, ("--strict",), 1, "nothing was written, as --strict asks"),
]


@pytest.mark.parametrize(("make", "options", "code", "words"), REFUSED)
def test_what_the_builder_refuses(
    folder: Path,
    make: Callable[[Path], Path],
    options: tuple[str, ...],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    arguments = ("--no-cache", "--output", folder / "m.plan")
    line = error_line(capsys, code, "build", make(folder), *RTX, *options, *arguments)
    assert words in line
    assert left(folder) == {"m.onnx"}


FAKE_TENSORRT = """
# A fake, at the adapter's edge: enough to be imported, and to tell whether it was touched.
__version__ = "{version}"
class Builder:
    def __init__(self, *_): raise SystemExit("a builder was made without a driver")
"""
BROKEN = "raise ImportError('libnvinfer.so.11: cannot open shared object file: No such file')"
BROKEN_RTX = "raise ImportError('libtensorrt_rtx.so.1: cannot open shared object file')"
GONE = "raise ImportError('No module named onnxruntime', name='onnxruntime')"

MACHINES: list[tuple[dict[str, str], tuple[str, ...], str]] = [
    ({"tensorrt": BROKEN}, ("--backend", "tensorrt"), "its library libnvinfer.so.11 cannot be"),
    ({"tensorrt_rtx": BROKEN_RTX}, RTX, "its library libtensorrt_rtx.so.1 cannot be loaded"),
    (
        {"tensorrt": FAKE_TENSORRT.format(version="8.6.1")},
        ("--backend", "tensorrt"),
        "tensorrt 8.6.1 is installed; slimdeploy needs 10.3 or later, below 12.0",
    ),
    (
        {"tensorrt": FAKE_TENSORRT.format(version="12.0.0")},
        ("--backend", "tensorrt"),
        "tensorrt 12.0.0 is installed; slimdeploy needs 10.3 or later, below 12.0",
    ),
    ({"onnxruntime": GONE}, ORT, "onnxruntime is not installed: pip install 'slimdeploy[cpu]'"),
]


DRY = pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["built", "dry"])


@DRY
@pytest.mark.parametrize(("modules", "options", "words"), MACHINES)
def test_a_machine_that_lacks_something(
    good: Path,
    modules: dict[str, str],
    options: tuple[str, ...],
    words: str,
    dry: tuple[str, ...],
    tmp_path: Path,
) -> None:
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    for name, text in modules.items():
        (fakes / f"{name}.py").write_text(text)
    output = "new.onnx" if options == ORT else "m.plan"
    arguments = ("build", good, *options, *dry, "--output", output)
    line = ended(run(good.parent, *arguments, path=fakes), 3)
    assert words in line
    assert left(good.parent) == {"m.onnx"}


@DRY
@pytest.mark.usefixtures("no_driver")
def test_tensorrt_without_a_driver_makes_no_builder(
    good: Path, dry: tuple[str, ...], tmp_path: Path
) -> None:
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    (fakes / "tensorrt.py").write_text(FAKE_TENSORRT.format(version="10.3.0"))
    arguments = ("build", good, "--backend", "tensorrt", *dry, "--output", "m.plan")
    line = ended(run(good.parent, *arguments, path=fakes), 3)
    assert "this machine has no NVIDIA driver" in line
    assert "or use --backend tensorrt-rtx, which compiles without one" in line


@DRY
@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_is_never_replaced(
    good: Path, provider: str, dry: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*ORT, "--provider", provider, *dry)
    line = error_line(capsys, 3, "build", good, *options, "--output", good.parent / "n.onnx")
    assert "driver" in line
    assert left(good.parent) == {"m.onnx"}


@DRY
def test_tensorrt_that_is_not_installed(
    good: Path, dry: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib.util import find_spec

    if find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed here")
    line = error_line(capsys, 3, "build", good, *dry, "--output", good.parent / "m.plan")
    assert "tensorrt is not installed: pip install 'slimdeploy[tensorrt]'; on a Jetson" in line


@pytest.fixture
def heavy(folder: Path) -> Path:
    """A model of 4 MB, whose engine takes room."""
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    weights = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    body = "a = MatMul(x, w)  b = Tanh(a)  c = MatMul(b, w)  y = Tanh(c)"
    return saved(
        text_model("float[B,1024] x => float[B,1024] y", body, w=weights), folder / "m.onnx"
    )


def test_a_disk_that_is_full(heavy: Path) -> None:
    """Files of this process and its children may grow to 1 MB."""
    command = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
from slimdeploy.cli import main
main(["build", {str(heavy)!r}, "--backend", "tensorrt-rtx", "--output", "m.plan"])
"""
    done = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        cwd=heavy.parent,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "m.plan: cannot be written (File too large)" in checked_line(done.stdout, done.stderr)
    assert left(heavy.parent) == {"m.onnx"}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


HELD = """
# A builder that tells that it was reached, and never gets ready.
import os, pathlib, time
mark = pathlib.Path(__file__).with_name("started")
mark.with_suffix(".new").write_text(str(os.getpid()))
mark.with_suffix(".new").rename(mark)
time.sleep(600)
"""


def held_build(good: Path, fakes: Path) -> tuple[subprocess.Popen[str], int]:
    """A command whose build process is in the middle of its work, and stays there; its id."""
    fakes.mkdir()
    (fakes / "tensorrt_rtx.py").write_text(HELD)
    process = run(good.parent, "build", good, *RTX, "--output", "m.plan", path=fakes)
    while not (fakes / "started").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    child = int((fakes / "started").read_text())
    assert Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text() == f"{child} "
    return process, child


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (
            signal.SIGKILL,
            "the build was killed (signal 9), most likely because the machine ran out",
        ),
        (signal.SIGSEGV, "the build process crashed (signal 11); nothing was written: run"),
    ],
)
def test_a_build_that_is_killed(
    good: Path, number: signal.Signals, words: str, tmp_path: Path
) -> None:
    cache = Path(os.environ["XDG_CACHE_HOME"])
    process, child = held_build(good, tmp_path / "fakes")
    os.kill(child, number)
    assert words in ended(process, 3)
    assert left(good.parent) == {"m.onnx"}
    assert not list(cache.rglob("engine"))


def test_a_user_who_interrupts(good: Path, tmp_path: Path) -> None:
    process, child = held_build(good, tmp_path / "fakes")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert err == "slimdeploy: interrupted\n"
    assert left(good.parent) == {"m.onnx"}
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_build_that_is_told_to_end(good: Path, number: signal.Signals, tmp_path: Path) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored, and inherited so
    try:
        process, child = held_build(good, tmp_path / "fakes")
    finally:
        signal.signal(number, before)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + number, "", "")
    assert left(good.parent) == {"m.onnx"}
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does this on Linux alone")
def test_a_build_process_ends_with_the_one_that_started_it(good: Path, tmp_path: Path) -> None:
    process, child = held_build(good, tmp_path / "fakes")
    process.kill()
    process.communicate(timeout=60)
    status, until = Path(f"/proc/{child}/stat"), time.monotonic() + 10
    # One that has ended, but that nobody has asked for its status, is still listed, as Z.
    while status.exists() and status.read_text().rpartition(") ")[2][0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_module_in_the_users_folder_is_not_taken_for_the_real_one(
    good: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxruntime", "json"):
        (good.parent / f"{name}.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(good.parent)
    main(["build", "m.onnx", *ORT, "--output", "fast.onnx"])
    assert "CPUExecutionProvider" in capsys.readouterr().out
    assert (good.parent / "fast.onnx").is_file()


def test_the_build_process_runs_the_package_that_started_it(good: Path, tmp_path: Path) -> None:
    """Not another one that is installed, if this one is run from where it lies."""
    copy = shutil.copytree(ROOT / "slimdeploy", tmp_path / "src" / "slimdeploy")
    worker = copy / "engine" / "building" / "worker.py"
    told = 'print(\'{"error": "InputError", "message": "told by the copy"}\')'
    worker.write_text(f"{worker.read_text().partition('if __name__')[0]}\n{told}\n")
    command = [sys.executable, "-m", "slimdeploy", "build", str(good), *ORT, "--output", "f.onnx"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=copy.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert "told by the copy" in done.stderr


def test_a_user_who_interrupts_while_the_build_process_is_being_started(
    good: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, found = subprocess.Popen, []

    def interrupted(*words: Any, **more: Any) -> subprocess.Popen[str]:
        found.append(real(*words, **more))
        signal.raise_signal(signal.SIGINT)
        return found[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    usual = signal.default_int_handler  # a run in the background may have been told to ignore it
    before = signal.signal(signal.SIGINT, usual)
    try:
        with pytest.raises(SystemExit) as caught:
            main(["build", str(good), *RTX, "--output", str(good.parent / "m.plan")])
        assert signal.getsignal(signal.SIGINT) is usual
    finally:
        signal.signal(signal.SIGINT, before)
    assert (caught.value.code, capsys.readouterr().err) == (130, "slimdeploy: interrupted\n")
    assert found[0].poll() == -signal.SIGKILL
    assert left(good.parent) == {"m.onnx"}


def test_an_older_engine_survives_a_failed_build(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    output = good.parent / "m.plan"
    main(["build", str(good), *RTX, "--output", str(output)])
    capsys.readouterr()
    before = {path: path.read_bytes() for path in good.parent.iterdir()}
    error_line(capsys, 1, "build", good, *RTX, "--strict", "--output", output)
    assert {path: path.read_bytes() for path in good.parent.iterdir()} == before
