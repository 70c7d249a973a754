"""What every runtime looks like from outside: arrays in, arrays out, and an honest name tag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import InputError

Array = NDArray[Any]
Feeds = Array | Mapping[str, Array]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: its name, its shape (None where it may vary) and numpy's type name."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class EngineInfo:
    """What ran: as read back from the runtime, never as requested.

    Attributes:
        artifact: the file's name.
        runtime: "onnxruntime", ...
        version: the runtime's version.
        provider: the execution provider or device in use.
        threads: CPU threads within an operator.
    """

    artifact: str
    runtime: str
    version: str
    provider: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)


class Engine(Protocol):
    """A loaded model. Use it in a `with` statement; it holds memory until it is closed.

    Example:
        >>> with open_engine(Path("slim.onnx")) as engine:
        ...     logits = engine.infer(images)["logits"]
    """

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The model's inputs, in its order."""
        ...

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The model's outputs, in its order."""
        ...

    def infer(self, images: Feeds) -> dict[str, Array]:
        """Every output by name, as host arrays, for one batch of host arrays.

        A model with one input takes the array itself.

        Raises:
            InputError: if names, shapes or types are not what the model takes.
        """
        ...

    def describe(self) -> EngineInfo:
        """What is running this model."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def check_feeds(artifact: str, inputs: tuple[TensorInfo, ...], images: Feeds) -> dict[str, Array]:
    """`images` by input name, after comparing them with what the model takes.

    Raises:
        InputError: naming the input, what it was given and what it takes.
    """
    if isinstance(images, np.ndarray):
        if len(inputs) != 1:
            names = ", ".join(info.name for info in inputs)
            raise InputError(f"{artifact}: has the inputs {names}; give one array for each by name")
        images = {inputs[0].name: images}
    expected = [info.name for info in inputs]
    if sorted(images) != sorted(expected):
        raise InputError(f"{artifact}: takes the inputs {expected}, but was given {sorted(images)}")
    for info in inputs:
        _check_tensor(artifact, info, images[info.name])
    return dict(images)


def _check_tensor(artifact: str, info: TensorInfo, array: Array) -> None:
    given = TensorInfo(info.name, array.shape, array.dtype.name)
    fits = len(array.shape) == len(info.shape) and all(
        want in (None, have) for want, have in zip(info.shape, array.shape, strict=True)
    )
    if fits and given.dtype == info.dtype:
        return
    remedy = "give that shape" if not fits else f"convert to {info.dtype}"
    raise InputError(f"{artifact}: input '{info.name}' takes {info}, not {given}; {remedy}")
