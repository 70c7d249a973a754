"""What must run on a bare machine imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import slimdeploy

PACKAGE = Path(slimdeploy.__file__).parent
LIGHT = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for folder in ("graph", "engine", "forward", "precision", "measure", "serve", "report")
    for path in sorted((PACKAGE / folder).rglob("*.py"))
]
_BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked}:
            raise ModuleNotFoundError('blocked: ' + name, name=name.split('.')[0])
sys.meta_path.insert(0, Block())
"""


def run_blocked(blocked: set[str], code: str) -> subprocess.CompletedProcess[str]:
    program = _BLOCK.replace("{blocked}", repr(blocked)) + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_the_deployment_packages_import_without_torch_and_timm() -> None:
    assert len(LIGHT) > 20
    code = "import importlib\n" + "\n".join(f"importlib.import_module({m!r})" for m in LIGHT)
    done = run_blocked({"torch", "torchvision", "timm"}, code)
    assert done.returncode == 0, done.stderr


VERBS = [
    "slim",
    "export",
    "profile",
    "evaluate",
    "finetune",
    "sweep",
    "build",
    "doctor",
    "inspect",
    "draw",
]


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_works_with_every_extra_missing(verb: str) -> None:
    heavy = {
        "torch",
        "torchvision",
        "timm",
        "safetensors",
        "onnxruntime",
        "matplotlib",
        "onnxscript",
        "tensorrt",
        "tensorrt_rtx",
        "polygraphy",
    }
    code = f"from slimdeploy.cli import main; main({[verb] if verb else []!r} + ['--help'])"
    done = run_blocked(heavy, code)
    assert done.returncode == 0, done.stderr
    assert "Usage: slimdeploy" in done.stdout


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        (
            "torch",
            ["slim", "--model", "test_vit", "--data-dir", ".", "--mac-reduction", "0.4"],
            "train",
        ),
        ("timm", ["slim", "--model", "m", "--data-dir", ".", "--mac-reduction", "0.4"], "train"),
        ("safetensors", ["export", "--model", "test_vit"], "train"),
        ("onnxruntime", ["profile", "--dense", "a.onnx", "--slim", "b.onnx"], "cpu"),
    ],
)
def test_a_missing_extra_is_one_line_and_exit_code_3(
    missing: str, arguments: list[str], extra: str, tmp_path: Path
) -> None:
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(b"\x08\x01")
    arguments = [str(tmp_path / a) if a.endswith(".onnx") else a for a in arguments]
    done = run_blocked({missing}, f"from slimdeploy.cli import main; main({arguments!r})")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert f"{missing} is not installed: pip install 'slimdeploy[{extra}]'" in done.stderr


def test_help_imports_nothing_that_takes_time() -> None:
    """`--help` must answer in half a second; what would break that is an import."""
    code = (
        "import sys; from slimdeploy.cli import make_app; make_app().help_print([])\n"
        "print(sorted({'torch', 'timm', 'onnx', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
