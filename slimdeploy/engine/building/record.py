"""What a manifest keeps of a build: enough to say, before loading, whether an engine will load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from slimdeploy.engine.building.report import BuildReport
from slimdeploy.engine.building.request import Backend, BuildRequest
from slimdeploy.engine.gpu import Gpu
from slimdeploy.engine.host import platform_name
from slimdeploy.engine.lint import Finding, summary
from slimdeploy.engine.protocol import TensorInfo
from slimdeploy.engine.trt.parse import Attention
from slimdeploy.errors import InputError
from slimdeploy.manifest import Manifest, manifest_path
from slimdeploy.preprocessing import first_problem


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecordedGpu(_Model):
    """The GPU it was built on."""

    name: str
    compute_capability: tuple[int, int]

    @property
    def sm(self) -> str:
        """As compilers spell it."""
        return "sm_{}{}".format(*self.compute_capability)


class RecordedTensor(_Model):
    """An input or output; a size that varies is null."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class RecordedBlock(_Model):
    """Token counts of one block."""

    queries: int
    keys: int


class RecordedFinding(_Model):
    """What a linter found."""

    rule: str
    message: str
    names: tuple[str, ...]


class BuildRecord(_Model):
    """One build.

    Attributes:
        platform: operating system and processor it was built on.
        targets: what the engine runs on, in words.
        batch: smallest, most frequent and largest batch; null for a fixed one.
        blocks: token counts, and in `blocks_read_from` whether the engine's kernels gave them or
            the parsed network.
        kernels: counts of `lint.summary`; {} if the engine does not tell its kernels, which were
            read from `kernels_read_from`.
    """

    backend: Backend
    version: str
    platform: str
    gpu: RecordedGpu | None
    targets: str
    provider: str | None
    compute_capabilities: tuple[str, ...]
    version_compatible: bool
    hardware_compatible: str
    batch: tuple[int, int, int] | None
    workspace_gb: float | None
    optimization_level: int | None
    inputs: tuple[RecordedTensor, ...]
    outputs: tuple[RecordedTensor, ...]
    blocks: tuple[RecordedBlock, ...]
    blocks_read_from: Literal["engine", "network"]
    kernels: dict[str, int]
    kernels_read_from: str
    findings: tuple[RecordedFinding, ...]
    notes: tuple[str, ...]
    parse_seconds: float
    build_seconds: float
    cached: bool

    @classmethod
    def of(
        cls,
        report: BuildReport,
        request: BuildRequest,
        tokens: Sequence[Attention] | None,
        findings: Sequence[Finding],
    ) -> BuildRecord:
        """From what was read back; `tokens` are None where the engine does not tell them."""
        blocks = report.attentions if tokens is None else tokens
        return cls(
            backend=request.backend,
            version=report.version,
            platform=platform_name(),
            gpu=_gpu(report.gpu),
            targets=report.targets,
            provider=request.provider if request.backend == "onnxruntime" else None,
            compute_capabilities=request.compute_capabilities,
            version_compatible=request.version_compatible,
            hardware_compatible=request.hardware_compatible,
            batch=request.batch,
            workspace_gb=report.workspace_gb,
            optimization_level=request.optimization_level,
            inputs=_tensors(report.inputs),
            outputs=_tensors(report.outputs),
            blocks=tuple(RecordedBlock(queries=b.queries, keys=b.keys) for b in blocks),
            blocks_read_from="network" if tokens is None else "engine",
            kernels=summary(report.layers, report.attentions) if report.layers else {},
            kernels_read_from=report.layers_from,
            findings=tuple(RecordedFinding(**finding.to_json()) for finding in findings),
            notes=report.notes,
            parse_seconds=round(report.parse_seconds, 3),
            build_seconds=round(report.build_seconds, 3),
            cached=report.cached,
        )


def build_record(manifest: Manifest, artifact: Path) -> BuildRecord:
    """The record in an engine's manifest.

    Raises:
        InputError: if there is none, or a field is not what it must be.
    """
    path = manifest_path(artifact)
    if "build" not in manifest.results:
        raise InputError(f"{path}: results.build is missing: build the engine with slimdeploy")
    try:
        return BuildRecord.model_validate(manifest.results["build"])
    except ValidationError as error:
        raise InputError(f"{path}: results.build: {first_problem(error)}") from error


def _gpu(gpu: Gpu | None) -> RecordedGpu | None:
    if gpu is None:
        return None
    return RecordedGpu(name=gpu.name, compute_capability=gpu.compute_capability)


def _tensors(infos: Sequence[TensorInfo]) -> tuple[RecordedTensor, ...]:
    return tuple(RecordedTensor(name=i.name, shape=i.shape, dtype=i.dtype) for i in infos)
