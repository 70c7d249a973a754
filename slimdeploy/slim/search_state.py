"""The folder from which a killed search goes on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from slimdeploy.console import note
from slimdeploy.errors import one_line
from slimdeploy.files import atomic_path, write_text
from slimdeploy.schedule import Layer
from slimdeploy.slim.calibration import Calibration

_MARK = "settings.json"
# What files damaged or removed by hand raise: no JSON, no layer, no weights, another block's.
_UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError)


class SearchState:
    """The search's folder of finished layers, from which a killed run goes on.

    `settings.json` says what the run was; a folder of another run is not used. Each layer is one
    atomically written file, with the block's weights beside it when reconstruction changed them.
    """

    def __init__(self, folder: Path | None, settings: dict[str, object]) -> None:
        self.folder = folder
        if folder is None:
            return
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        mark = folder / _MARK
        if folder.is_dir() and not (mark.is_file() and mark.read_bytes() == text.encode()):
            self.clear()
        write_text(mark, text)

    def load(self, layer: int, state: Calibration, changed: int | None) -> Layer | None:
        """The finished layer, with its block's weights put into `state.slim`; None if not done.

        Args:
            changed: index of the block whose weights belong to the record, as given to `save`.
        """
        if self.folder is None or not (path := self._path(layer, "json")).is_file():
            return None
        try:
            found = Layer.model_validate_json(path.read_bytes())
            if changed is not None:
                weights = load_file(self._path(layer, f"block-{changed}.safetensors"))
                state.slim.blocks[changed].load_state_dict(weights)
        except _UNREADABLE as error:
            reason = one_line(error, 80)
            note(f"{self.folder}: layer {layer} is unreadable ({reason}); it is slimmed again")
            return None
        return found

    def save(self, layer: int, found: Layer, state: Calibration, changed: int | None) -> None:
        """Record a finished layer; the weights first, so that a record implies them."""
        if self.folder is None:
            return
        if changed is not None:
            with atomic_path(self._path(layer, f"block-{changed}.safetensors")) as path:
                save_file(state.slim.blocks[changed].state_dict(), path)
        write_text(self._path(layer, "json"), found.model_dump_json())

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
        except _UNREADABLE as error:
            note(f"{path}: unreadable ({one_line(error, 80)}); it is found again")
            return None

    def clear(self) -> None:
        """Remove the folder: the search is done, or was another."""
        if self.folder is not None and self.folder.is_dir():
            # The mark goes first: layers without one are never used, so a kill in here does not
            # leave some of them to a run that would not fit them.
            for path in sorted(self.folder.iterdir(), key=lambda p: p.name != _MARK):
                path.unlink()
            self.folder.rmdir()

    def _path(self, layer: int, suffix: str) -> Path:
        assert self.folder is not None
        return self.folder / f"layer-{layer:03d}.{suffix}"


def settings_of(options: Any, **more: object) -> dict[str, object]:
    """Everything that decides a search's result, for `SearchState`; `options` is a dataclass."""
    return {**json.loads(json.dumps(asdict(options))), **more}
