"""Weights files: safetensors with what is needed to use them, or any checkpoint timm can read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models import load_state_dict
from torch import Tensor, nn

from slimdeploy.errors import GateError, InputError, one_line
from slimdeploy.files import atomic_path
from slimdeploy.preprocessing import Preprocessing


@dataclass(frozen=True)
class Checkpoint:
    """A state dict in float32 and the metadata found beside it."""

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read `.safetensors`, or a `.pth`/`.pt` file as timm's training script writes it.

        Raises:
            InputError: if the file is absent, damaged or holds no state dict, or a weight in it is
                NaN or infinite.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such checkpoint")
        if path.suffix == ".onnx":
            raise InputError(f"{path}: is an ONNX file, not a checkpoint; give it with --onnx")
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                    metadata = _flat(file.metadata() or {})
            else:
                state, metadata = load_state_dict(str(path), weights_only=True), {}
        except Exception as error:  # pickle raises whatever the bytes spell
            reason = "; safetensors go by the name .safetensors" * (path.suffix != ".safetensors")
            raise InputError(
                f"{path}: not a readable checkpoint ({one_line(error, 80)}){reason}"
            ) from error
        for key, value in state.items():
            if not isinstance(value, Tensor):
                raise InputError(f"{path}: holds no state dict ('{key}' is not a tensor)")
        floats = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        if (broken := not_finite(floats)) is not None:
            raise InputError(
                f"{path}: {broken} holds NaN or infinity; give weights from before they broke"
            )
        return cls(path, floats, metadata)

    @property
    def num_classes(self) -> int:
        """Classes of the head, from its weight; 0 without a head."""
        head = self.state.get("head.weight")
        return 0 if head is None else int(head.shape[0])

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The preprocessing recorded in the file, if it is."""
        text = self.metadata.get("preprocessing")
        try:
            return None if text is None else Preprocessing.model_validate_json(text)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise InputError(f"{self.path}: metadata.preprocessing: {message}") from error

    def load_into(self, model: nn.Module, name: str) -> None:
        """Load every weight into `model`.

        Raises:
            InputError: naming the first weight that is missing, strange or of another shape.
        """
        wanted = model.state_dict()
        for key, tensor in wanted.items():
            if key not in self.state:
                raise InputError(f"{self.path}: lacks {key}, which {name} needs")
            found = tuple(self.state[key].shape)
            if found != tuple(tensor.shape):
                raise InputError(
                    f"{self.path}: {key} has shape {found}, {name} needs {tuple(tensor.shape)}"
                )
        for key in self.state:
            if key not in wanted:
                raise InputError(f"{self.path}: holds {key}, which {name} does not have")
        model.load_state_dict(self.state)


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds NaN or infinity; None if all are finite."""
    return next((name for name, value in state.items() if not value.isfinite().all()), None)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over a model's weights, in order."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def save_weights(
    model: nn.Module,
    path: Path,
    *,
    name: str,
    preprocessing: Preprocessing,
    extra: dict[str, str] | None = None,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Write a model's weights atomically as safetensors, with model name and preprocessing.

    Loading always gives float32; `dtype` is how they are stored.

    Raises:
        GateError: if a weight is NaN or infinite, or becomes so in `dtype`; nothing is written.
    """
    stored = getattr(torch, dtype)
    state = {
        key: (value.to(stored) if value.is_floating_point() else value).contiguous().cpu()
        for key, value in model.state_dict().items()
    }
    if (broken := not_finite(state)) is not None:
        whole = dtype != "float32" and not_finite(model.state_dict()) is None
        reason = f"too large for {dtype}" if whole else "NaN or infinite"
        raise GateError(f"{path.name}: not written: {broken} came out {reason}")
    metadata = {
        "model": name,
        "num_classes": str(getattr(model, "num_classes", 0)),
        "preprocessing": json.dumps(preprocessing.model_dump(mode="json")),
        **(extra or {}),
    }
    # One key: the library writes several in random order, and equal weights should be equal files.
    with atomic_path(path) as temporary:
        save_file(state, temporary, {"slimdeploy": json.dumps(metadata, sort_keys=True)})


def _flat(metadata: dict[str, str]) -> dict[str, str]:
    """A file's metadata, whether written by `save_weights` or key by key."""
    return {**metadata, **json.loads(metadata.get("slimdeploy", "{}"))}
