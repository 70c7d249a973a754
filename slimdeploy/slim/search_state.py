"""The folder from which a killed search with recovery in its layers goes on."""

from __future__ import annotations

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from slimdeploy.files import atomic_path
from slimdeploy.run_state import RunState
from slimdeploy.schedule import Layer
from slimdeploy.slim.calibration import Calibration

# What files damaged or removed by hand raise: none there, no weights, another block's.
_UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError)


class SearchState(RunState):
    """Finished layers, with the block's weights beside each where recovery changed them."""

    def load(self, layer: int, state: Calibration, changed: int | None) -> Layer | None:
        """The finished layer, with its block's weights put into `state.slim`; None if not done.

        Args:
            changed: index of the block whose weights belong to the record, as given to `save`.
        """
        found = self.recall_layer(layer)
        if found is not None and changed is not None:
            try:
                weights = load_file(self._path(layer, f"block-{changed}.safetensors"))
                state.slim.blocks[changed].load_state_dict(weights)
            except _UNREADABLE as error:
                self._slimmed_again(layer, error)
                return None
        return found

    def save(self, layer: int, found: Layer, state: Calibration, changed: int | None) -> None:
        """Record a finished layer; the weights first, so that a record implies them."""
        if self.folder is not None and changed is not None:
            with atomic_path(self._path(layer, f"block-{changed}.safetensors")) as path:
                save_file(state.slim.blocks[changed].state_dict(), path)
        self.remember_layer(layer, found)
