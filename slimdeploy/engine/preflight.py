"""Will this engine load here? Said from its manifest, in words, before anything is loaded.

TensorRT itself has no such check: it refuses a foreign engine with a number, or crashes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slimdeploy.engine.building.record import BuildRecord, build_record
from slimdeploy.engine.building.request import RTX_TARGETS
from slimdeploy.engine.host import Host
from slimdeploy.engine.trt.bindings import version_of
from slimdeploy.errors import InputError, MissingError
from slimdeploy.manifest import Manifest, verify_manifest

_NAMES = {
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "onnxruntime": "ONNX Runtime",
}
_TARGET = "--compute-capability"


@dataclass(frozen=True)
class Verdict:
    """What stands between an engine and this machine.

    Attributes:
        missing: what the machine lacks, and no other engine would help.
        refused: why this engine cannot run on this machine; another build could.
        cautions: what may cost speed or is not promised.
        rebuild: the command that builds it anew.
    """

    missing: tuple[str, ...]
    refused: tuple[str, ...]
    cautions: tuple[str, ...]
    rebuild: str

    @property
    def loads(self) -> bool:
        """Whether nothing is known to stand against it."""
        return not self.missing and not self.refused

    def require(self, artifact: Path) -> None:
        """Raise what stands against it, in one line.

        Raises:
            MissingError: if the machine lacks something.
            InputError: if the engine is for another machine.
        """
        if self.missing:
            raise MissingError(f"{artifact}: {'; '.join(self.missing)}")
        if self.refused:
            raise InputError(f"{artifact}: {'; '.join(self.refused)}: rebuild with {self.rebuild}")


def open_record(artifact: Path) -> tuple[Manifest, BuildRecord]:
    """The manifest and build record of an engine, which must be the file they describe.

    Raises:
        InputError: if the engine or its manifest is missing, or a field is wrong.
        GateError: if the engine is another one, or damaged.
    """
    if not artifact.is_file():
        raise InputError(f"{artifact}: no such file; give the path of an engine")
    manifest = verify_manifest(artifact)
    return manifest, build_record(manifest, artifact)


def preflight(manifest: Manifest, record: BuildRecord, host: Host) -> Verdict:
    """Compare where an engine was built with where it is to run."""
    name = _NAMES[record.backend]
    missing = []
    if host.gpu is None and _wants_gpu(record):
        missing.append(f"{name} engines run on an NVIDIA GPU, which this machine lacks")
    if record.backend not in host.backends:
        extra = {"onnxruntime": "cpu"}.get(record.backend, record.backend)
        missing.append(f"{name} is not installed: pip install 'slimdeploy[{extra}]'")
    moved = _platform(record, host)
    bound = record.backend == "tensorrt"  # whose plans NVIDIA ties to system and processor
    refused = [*_version(record, host), *moved * bound, *_device(record, host)]
    cautions = [*moved * (not bound), *_cautions(record, host)]
    return Verdict(
        tuple(missing), tuple(refused), tuple(cautions), _rebuild(manifest, record, host)
    )


def _rebuild(manifest: Manifest, record: BuildRecord, host: Host) -> str:
    """The command that built it, for this machine's GPU where it names other machines' alone."""
    command = [word for word in manifest.command if word != "--dry-run"]
    if host.gpu is not None and record.compute_capabilities:
        here = "{}.{}".format(*host.gpu.compute_capability)
        if here not in record.compute_capabilities:
            command = _retargeted(command, here)
    return shlex.join(command) if command else "slimdeploy build"


def _retargeted(command: Sequence[str], here: str) -> list[str]:
    """For the GPU `here`, by TensorRT itself if TensorRT-RTX does not compile for it."""
    words = _without_targets(command)
    if words == command:  # made for all that the compiler knows, as it will be again
        return words
    if here in RTX_TARGETS:
        return [*words, _TARGET, here]
    return [re.sub(r"^(--backend=)?tensorrt-rtx$", r"\1tensorrt", word) for word in words]


def _without_targets(command: Sequence[str]) -> list[str]:
    """The command without the GPUs to compile for: `--flag VALUE` or `--flag=VALUE`."""
    before = ("", *command)
    return [
        word
        for previous, word in zip(before, command, strict=False)
        if previous != _TARGET and word != _TARGET and not word.startswith(f"{_TARGET}=")
    ]


def _wants_gpu(record: BuildRecord) -> bool:
    return record.backend != "onnxruntime" or record.provider != "cpu"


def _version(record: BuildRecord, host: Host) -> Sequence[str]:
    here = host.backends.get(record.backend)
    if here is None or here == record.version or record.backend == "onnxruntime":
        return ()
    built = version_of(record.version)
    if record.version_compatible and version_of(here) >= built:
        return ()
    name = _NAMES[record.backend]
    why = "which loads no engine of a newer one" * record.version_compatible
    return (f"built by {name} {record.version}; this host has {here} {why}".rstrip(),)


def _device(record: BuildRecord, host: Host) -> Sequence[str]:
    """The architecture must be the one it was built for, or one of those it was compiled for."""
    if host.gpu is None or record.backend == "onnxruntime":
        return ()
    here = host.gpu.compute_capability
    if record.backend == "tensorrt-rtx":
        targets = record.compute_capabilities
        if not targets or "{}.{}".format(*here) in targets:
            return ()
        return (f"compiled for compute capability {record.targets}; this GPU has {host.gpu.sm}",)
    assert record.gpu is not None
    if here == record.gpu.compute_capability:
        return ()
    if record.hardware_compatible == "ampere-plus" and min(here, record.gpu.compute_capability) >= (
        8,
        0,
    ):
        return ()
    return (f"built for {record.gpu.sm} ({record.gpu.name}); this GPU is {host.gpu.sm}",)


def _platform(record: BuildRecord, host: Host) -> list[str]:
    """Operating system and processor."""
    if record.platform == host.platform:
        return []
    return [f"built on {record.platform}; this host is {host.platform}"]


def _cautions(record: BuildRecord, host: Host) -> Sequence[str]:
    found = []
    if host.gpu is not None and record.gpu is not None and record.backend == "tensorrt":
        same = host.gpu.compute_capability == record.gpu.compute_capability
        if same and host.gpu.name != record.gpu.name:
            found.append(
                f"tuned on {record.gpu.name}, this is {host.gpu.name}: it runs, perhaps slower"
            )
    return found
