"""The record beside every artifact, `x.onnx.json`: what it is, what made it, from what.

The artifact itself stays byte-pure: a header inside an engine file breaks every other loader.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from slimdeploy import __version__
from slimdeploy.errors import GateError, InputError
from slimdeploy.files import read_bytes, sha256_file, write_text
from slimdeploy.preprocessing import Preprocessing, first_problem

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Artifact(_Record):
    """The file described: its name (the manifest lies beside it), hash and size.

    `parts` are the hashes of files that belong to it: ONNX weights stored outside the model.
    """

    name: str
    sha256: Sha256
    bytes: int = Field(ge=0)
    parts: dict[str, Sha256] = {}


class Source(_Record):
    """A file that the artifact was made from: the path as it was given, and its hash."""

    path: str
    sha256: Sha256

    @classmethod
    def of(cls, path: Path, lies_at: Path | None = None) -> Self:
        """The file at `path`, or the one that will be there and is still at `lies_at`."""
        return cls(path=str(path), sha256=sha256_file(lies_at or path))

    def find(self, artifact: Path) -> Path | None:
        """The very file, if it is still where it was, or lies beside what was made from it.

        A relative path was one of the folder that the command was given in, which is this one, or
        one that `artifact` lies in.
        """
        path, folder = Path(self.path), artifact.resolve().parent
        places = [path, *(above / path for above in (folder, *folder.parents)), folder / path.name]
        return next((place for place in places if self.is_at(place)), None)

    def is_at(self, path: Path) -> bool:
        """Whether that is the very file."""
        return path.is_file() and sha256_file(path) == self.sha256


class Manifest(_Record):
    """See the module.

    Attributes:
        format: of this record.
        kind: what the artifact is: "dense-onnx", "slim-onnx", "schedule", "checkpoint", ...
        slimdeploy: the version that made it.
        artifact: the file described.
        made_from: by role: "schedule", "checkpoint", "dense", ...
        command: the exact command, one argument each.
        versions: of the packages that mattered.
        preprocessing: what the model's images must go through, where it takes images.
        precision: number of weights by type, as read back from the artifact.
        tokens_per_block: how many tokens each block computes.
        results: records of checks made on it, such as its parity.
    """

    format: Literal[1] = 1
    kind: str
    slimdeploy: str
    artifact: Artifact
    made_from: dict[str, Source] = {}
    command: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    preprocessing: Preprocessing | None = None
    precision: dict[str, int] = {}
    tokens_per_block: tuple[int, ...] = ()
    results: dict[str, JsonValue] = {}


def manifest_path(artifact: Path) -> Path:
    """`x.onnx` to `x.onnx.json`; a manifest's own path is returned as it is."""
    return artifact if artifact.suffix == ".json" else artifact.with_name(f"{artifact.name}.json")


def write_manifest(
    artifact: Path,
    *,
    kind: str,
    made_from: Mapping[str, Path | Source],
    command: Sequence[str],
    packages: Iterable[str] = (),
    preprocessing: Preprocessing | None = None,
    tokens_per_block: Sequence[int] = (),
    results: Mapping[str, JsonValue] | None = None,
    precision: Mapping[str, int] | None = None,
) -> Path:
    """Describe `artifact`, which must be written already, and return the manifest's path.

    An artifact that is still in the folder of `files.staged` is described there, so that both take
    their places together. Sizes, hashes, versions and precision are read from the files and the
    installation; `precision` is for artifacts that only their builder can read, and is what it
    read back.

    Raises:
        InputError: if a file cannot be read or the manifest cannot be written.
    """
    parts, found = _read_back(artifact)
    manifest = Manifest(
        kind=kind,
        slimdeploy=__version__,
        artifact=Artifact(
            name=artifact.name,
            sha256=sha256_file(artifact),
            bytes=artifact.stat().st_size,
            parts={name: sha256_file(artifact.parent / name) for name in parts},
        ),
        made_from={
            role: source if isinstance(source, Source) else Source.of(source)
            for role, source in made_from.items()
        },
        command=tuple(command),
        versions=package_versions(packages),
        preprocessing=preprocessing,
        precision=found if precision is None else dict(precision),
        tokens_per_block=tuple(tokens_per_block),
        results=dict(results or {}),
    )
    target = manifest_path(artifact)
    write_text(target, manifest.model_dump_json(indent=2) + "\n")
    return target


def read_manifest(artifact: Path) -> Manifest:
    """The manifest beside `artifact`, or at it if it is the manifest's own path.

    Raises:
        InputError: if there is none, or a field is not what it must be.
    """
    path = manifest_path(artifact)
    if not path.is_file():
        raise InputError(f"{path}: no such manifest; make {artifact.name} with slimdeploy again")
    try:
        return Manifest.model_validate_json(read_bytes(path))
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from error


def verify_manifest(artifact: Path) -> Manifest:
    """The manifest beside `artifact`, after checking that it describes this very file.

    Raises:
        InputError: as `read_manifest`.
        GateError: if the file, or a file of weights that belongs to it, is another one.
    """
    manifest = read_manifest(artifact)
    expected = {artifact.name: manifest.artifact.sha256, **manifest.artifact.parts}
    for name, sha256 in expected.items():
        actual = sha256_file(artifact.parent / name)
        if actual != sha256:
            raise GateError(
                f"{artifact.parent / name}: is not the file its manifest describes (sha256 "
                f"{actual[:12]}, recorded {sha256[:12]}); make it again"
            )
    return manifest


def _read_back(artifact: Path) -> tuple[list[str], dict[str, int]]:
    """Files that belong to the artifact, and its weights by type, from what was written."""
    if artifact.suffix != ".onnx":
        return [], {}
    from slimdeploy.measure.onnx_file import external_files, load_structure, weight_types

    model = load_structure(artifact)
    return external_files(model), weight_types(model)


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions by distribution name; those not installed are left out."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
