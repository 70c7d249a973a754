"""The keep schedule: which tokens live in which layer, and why. The contract between all stages.

A token's *global id* is its place in the dense model's sequence: prefix tokens (class,
distillation, registers) first, then the patches row by row. Layer `l` computes queries, residual
and MLP for `layers[l].keep`; its keys and values come from what layer `l - 1` keeps (all tokens
for the first). Sets are nested: a dropped token does not come back.
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from slimdeploy.dynamic import Dynamic, dynamic_problem
from slimdeploy.errors import InputError
from slimdeploy.files import read_bytes, write_text
from slimdeploy.preprocessing import Preprocessing, first_problem

SCHEMA_URL = "urn:slimdeploy:schema:sched-1"
SCHEMA_FILE = Path(__file__).parent / "schemas" / "sched-1.json"

PrefixKind = Literal["class", "distillation", "register"]


def _sorted_unique(ids: tuple[int, ...]) -> tuple[int, ...]:
    if any(a >= b for a, b in pairwise(ids)):
        raise ValueError("ids must be in ascending order, each once")
    return ids


TokenIds = Annotated[tuple[NonNegativeInt, ...], AfterValidator(_sorted_unique)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WeightsFile(_Strict):
    """A file of weights, found relative to the schedule that names it.

    The hash of an ONNX file covers the weights that lie beside it.
    """

    path: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ModelGeometry(_Strict):
    """What the schedule must know of the model, and what it is checked against."""

    source: Literal["timm", "onnx"] = "timm"
    name: str
    kwargs: dict[str, int | float | bool | str] = Field(
        default_factory=dict, description="arguments for timm.create_model beside the name"
    )
    input_size: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(description="C, H, W")
    patch_size: tuple[PositiveInt, PositiveInt]
    grid: tuple[PositiveInt, PositiveInt] = Field(description="patches down, patches across")
    prefix: tuple[PrefixKind, ...] = Field(description="tokens before the patches, in order")
    depth: PositiveInt
    width: PositiveInt
    heads: PositiveInt
    mlp_width: PositiveInt = Field(
        description="hidden width; for a gated MLP that of a plain one with as many weights"
    )
    num_classes: NonNegativeInt
    head_reads: TokenIds = Field(description="global ids of the tokens that the head reads")
    head_pools: TokenIds = Field(
        default=(), description="global ids of the tokens that the head averages or attends over"
    )
    outputs: tuple[str, ...] = Field(
        default=(), description="outputs of an ONNX file that are kept; empty keeps all"
    )

    @property
    def patches(self) -> int:
        """Number of patches, N."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Number of tokens in the dense model: prefix and patches."""
        return len(self.prefix) + self.patches


class Layer(_Strict):
    """What one layer keeps, and the evidence."""

    # The length goes before the order: behind it, the schema would hold that of a string.
    keep: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_sorted_unique)]
    scores: tuple[float, ...] | None = Field(
        default=None, description="impact of every token of the dense model, larger is kept first"
    )
    error: float | None = Field(
        default=None,
        description="relative squared error of the next layer's output at the tokens it keeps",
    )


class Provenance(_Strict):
    """How the schedule came to be."""

    slimdeploy: str
    command: tuple[str, ...] = ()
    seed: int = 0
    impact: str | None = None
    shape: str | None = Field(default=None, description="how counts fall over the layers")
    mac_reduction: float | None = Field(default=None, description="the budget that was asked for")
    tolerance: float | None = Field(default=None, description="the paper's epsilon, relative")
    reconstruct: str | None = None
    images: int | None = Field(default=None, description="calibration images used")
    data: str | None = Field(default=None, description="SHA-256 of the calibration images' digest")


class KeepSchedule(_Strict):
    """A validated keep schedule; `read` and `write` are its file form (`sched.json`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_url: str = Field(default=SCHEMA_URL, alias="$schema")
    version: Literal[1] = 1
    model: ModelGeometry
    preprocessing: Preprocessing | None = None
    pool_kept: bool = Field(
        default=False, description="let the head pool over the kept tokens: another function"
    )
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)]
    dynamic: Dynamic | None = Field(
        default=None,
        description="choose each image's patches anew: `keep` then gives the counts, the prefix, "
        "and the patches that are chosen most often",
    )
    checkpoint: WeightsFile | None = Field(default=None, description="the dense model's weights")
    slim_checkpoint: WeightsFile | None = Field(
        default=None, description="weights made for this schedule (refit or fine-tuned)"
    )
    provenance: Provenance

    @model_validator(mode="after")
    def _tokens_agree(self) -> Self:
        keep = [layer.keep for layer in self.layers]
        problem = token_problem(self.model, keep, pool_kept=self.pool_kept)
        if problem:
            raise ValueError(problem)
        if self.dynamic and (problem := self._dynamic_problem(self.dynamic)):
            raise ValueError(problem)
        if self.preprocessing and self.preprocessing.input_size != self.model.input_size:
            raise ValueError("preprocessing.input_size: differs from model.input_size")
        for index, layer in enumerate(self.layers):
            if layer.scores is not None and len(layer.scores) != self.model.tokens:
                raise ValueError(
                    f"layers[{index}].scores: {len(layer.scores)} scores, "
                    f"the model has {self.model.tokens} tokens"
                )
        return self

    def _dynamic_problem(self, dynamic: Dynamic) -> str | None:
        model = self.model
        if model.head_pools:
            return "dynamic: not for a head that pools over patches"
        if any(id_ >= len(model.prefix) for id_ in model.head_reads):
            return "dynamic: not for a head that reads single patches"
        return dynamic_problem(dynamic, self.keep, model.tokens, len(model.prefix), model.width)

    @property
    def keep(self) -> list[list[int]]:
        """Global ids kept per layer."""
        return [list(layer.keep) for layer in self.layers]

    @property
    def counts(self) -> list[int]:
        """Number of tokens kept per layer, prefix included."""
        return [len(layer.keep) for layer in self.layers]

    @property
    def digest(self) -> str:
        """SHA-256 over the model's geometry and what is kept: what the artifacts depend on."""
        # Left out where empty, so that the digests of older schedules stay what they were.
        empty = {name for name in ("head_pools", "outputs") if not getattr(self.model, name)}
        essence: dict[str, object] = {
            "model": self.model.model_dump(mode="json", exclude=empty),
            "keep": self.keep,
        }
        if self.dynamic is not None:
            essence["dynamic"] = self.dynamic.model_dump(mode="json")
        return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> KeepSchedule:
        """Read and validate a schedule file.

        Raises:
            InputError: one line that names the file and the field.
        """
        data = read_bytes(path)
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise InputError(f"{path}: {_described(data) or _problem(error)}") from error

    def write(self, path: Path) -> None:
        """Write the schedule atomically, one layer's ids to a line."""
        # Left out where absent: older versions read every static schedule.
        absent = {"dynamic"} if self.dynamic is None else set()
        data = self.model_dump(mode="json", by_alias=True, exclude=absent)
        write_text(path, _compact_lists(data))


def token_problem(
    model: ModelGeometry, keep: list[tuple[int, ...]], *, pool_kept: bool = False
) -> str | None:
    """The first rule of a keep schedule that `keep` breaks, with its field, or None.

    Rules: one set per layer; ids exist; sets are nested; every layer keeps what the head reads,
    and all that it pools over, or with `pool_kept` one token of those.
    """
    if model.grid != (
        model.input_size[1] // model.patch_size[0],
        model.input_size[2] // model.patch_size[1],
    ):
        return f"model.grid: {model.grid} is not input_size over patch_size"
    if len(keep) != model.depth:
        return f"layers: {len(keep)} layers for a model of depth {model.depth}"
    before, holder = set(range(model.tokens)), "the model's tokens"
    for index, ids in enumerate(keep):
        strange = sorted(set(ids) - before)
        if strange and strange[-1] >= model.tokens:
            limit = model.tokens - 1
            return f"layers[{index}].keep: id {strange[-1]} is out of range, the last is {limit}"
        if strange:
            return f"layers[{index}].keep: id {strange[0]} is not among {holder}"
        if lost := _lost(model, set(ids), pool_kept):
            return f"layers[{index}].keep: {lost}"
        before, holder = set(ids), f"those that layers[{index}] keeps"
    return None


def _lost(model: ModelGeometry, kept: set[int], pool_kept: bool) -> str | None:
    """What the head needs and `kept` has not."""
    for id_ in model.head_reads:
        if id_ not in kept:
            kind = model.prefix[id_] if id_ < len(model.prefix) else "patch"
            return f"the {kind} token (id {id_}) is missing, the head reads it"
    pooled = set(model.head_pools)
    if pooled and not pooled & kept:
        return "no token is left of those that the head pools over"
    if pooled - kept and not pool_kept:
        return (
            f"token {min(pooled - kept)} is missing, the head pools over it; "
            "pool_kept lets it pool over the kept ones, which is another function"
        )
    return None


def _described(data: bytes) -> str | None:
    """What to say of a manifest, which lies beside an artifact as a schedule may."""
    try:
        found = json.loads(data)
        name = found["artifact"]["name"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return f"is the manifest of {name}, not a keep schedule; give that one"


def _problem(error: ValidationError) -> str:
    """One line for pydantic's first complaint: `layers[7].keep: message`."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        detail = first["msg"].removeprefix("Invalid JSON: ")
        return f"not valid JSON, truncated or damaged ({detail})"
    return first_problem(error)


def _compact_lists(data: object) -> str:
    """Indented JSON with lists of numbers on one line: a person can read and compare it."""
    if isinstance(data, dict):
        inner = ",\n".join(f"{json.dumps(k)}: {_compact_lists(v)}" for k, v in data.items())
        return "{\n" + _indent(inner) + "\n}" if inner else "{}"
    if isinstance(data, list) and any(isinstance(item, dict) for item in data):
        return "[\n" + _indent(",\n".join(_compact_lists(item) for item in data)) + "\n]"
    return json.dumps(data)


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


def schema_text() -> str:
    """The published JSON Schema of `sched.json`."""
    schema = KeepSchedule.model_json_schema(by_alias=True)
    return (
        json.dumps(
            {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "$id": SCHEMA_URL,
                **schema,
            },
            indent=2,
        )
        + "\n"
    )
