"""The folder from which a killed search goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from slimdeploy.console import note
from slimdeploy.errors import GateError, GraphError, one_line
from slimdeploy.files import atomic_path, write_text
from slimdeploy.schedule import Layer

_MARK = "settings.json"
T = TypeVar("T")
Arrays = Mapping[str, NDArray[Any]]


class RunState:
    """A run's folder of finished results, each an atomically written file.

    `settings.json` says what the run was; a folder of another run is given up, and that is said. As
    a context, it goes when the run is done, and when no run could go on from it.

    Attributes:
        folder: None keeps nothing.
    """

    def __init__(self, folder: Path | None, settings: dict[str, object]) -> None:
        self.folder = folder
        if folder is None:
            return
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        mark = folder / _MARK
        if folder.is_dir() and not (mark.is_file() and mark.read_bytes() == text.encode()):
            if self._found_any():
                note(f"{folder}: held an unfinished run of other options or images, now given up")
            self.clear()
        write_text(mark, text)

    def __enter__(self) -> Self:
        if self._found_any():
            note(f"{self.folder}: going on with what a run that did not end had found")
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        # What these two say, they would say again, whatever was found before.
        final = error is None or isinstance(error, GateError | GraphError)
        if final or not self._found_any():
            self.clear()

    def _found_any(self) -> bool:
        if self.folder is None or not self.folder.is_dir():
            return False
        return any(path.name != _MARK for path in self.folder.iterdir())

    def remember(self, name: str, value: object) -> None:
        """Keep a small result of this run by name."""
        if self.folder is not None:
            write_text(self.folder / f"{name}.json", json.dumps(value))

    def recall(self, name: str) -> Any:
        """What was remembered by that name; None if nothing was."""
        if self.folder is None or not (path := self.folder / f"{name}.json").is_file():
            return None
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            note(f"{path}: unreadable ({one_line(error, 80)}); it is found again")
            return None

    def once(self, name: str, make: Callable[[], T], among: Sequence[T]) -> T:
        """What was remembered by that name, if it is one of `among`; else what `make` finds."""
        known = self.recall(name)
        for value in among:
            if value == known:
                return value
        found = make()
        self.remember(name, found)
        return found

    def remember_arrays(self, name: str, arrays: Arrays) -> None:
        """Keep arrays of this run, by a name for all of them and one for each."""
        if self.folder is not None:
            named: Any = arrays
            # Not on a path, to which savez would add its suffix.
            with atomic_path(self.folder / f"{name}.npz") as path, path.open("wb") as file:
                np.savez(file, **named)

    def recall_arrays(self, name: str, shapes: Mapping[str, Sequence[int]]) -> Arrays | None:
        """What was remembered by that name; None if nothing was, or not of these shapes."""
        if self.folder is None or not (path := self.folder / f"{name}.npz").is_file():
            return None
        try:
            with np.load(path) as held:
                found = {part: held[part] for part in held.files}
            if {part: x.shape for part, x in found.items()} != {
                part: tuple(shape) for part, shape in shapes.items()
            }:
                raise ValueError("of other shapes")
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            note(f"{path}: unreadable ({one_line(error, 80)}); it is found again")
            return None
        return found

    def remember_layer(self, layer: int, found: Layer) -> None:
        """Keep what was decided of a layer."""
        if self.folder is not None:
            write_text(self._path(layer, "json"), found.model_dump_json())

    def recall_layer(self, layer: int) -> Layer | None:
        """What was decided of a layer; None if it was not yet, or what is there is damaged."""
        if self.folder is None or not (path := self._path(layer, "json")).is_file():
            return None
        try:
            return Layer.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            self._slimmed_again(layer, error)
            return None

    def clear(self) -> None:
        """Remove the folder: the search is done, or was another."""
        if self.folder is not None and self.folder.is_dir():
            # The mark goes first: layers without one are never used, so a kill in here does not
            # leave some of them to a run that would not fit them.
            for path in sorted(self.folder.iterdir(), key=lambda p: p.name != _MARK):
                path.unlink()
            self.folder.rmdir()

    def _slimmed_again(self, layer: int, error: Exception) -> None:
        reason = one_line(error, 80)
        note(f"{self.folder}: layer {layer} is unreadable ({reason}); it is slimmed again")

    def _path(self, layer: int, suffix: str) -> Path:
        assert self.folder is not None
        return self.folder / f"layer-{layer:03d}.{suffix}"


def settings_of(options: Any, **more: object) -> dict[str, object]:
    """Everything that decides a search's result, for `RunState`; `options` is a dataclass."""
    return {**json.loads(json.dumps(asdict(options))), **more}


def work_folder(output: Path) -> Path:
    """Where a run that is to write `output` keeps its state: beside it."""
    return output.with_name(f".{output.name}.work")
