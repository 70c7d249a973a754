"""Which outputs of a graph are wanted."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import onnx

from slimdeploy.errors import InputError


def keep_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Drop all outputs of `model` but those called `names`, in their order; none named keeps all.

    An exporter may give out every token of the last layer beside the pooled result: then nothing
    can be dropped until that output is given up.

    Raises:
        InputError: for a name that is not an output, or is given twice.
    """
    outputs = {value.name: value for value in model.graph.output}
    for name in names:
        if name not in outputs:
            near = difflib.get_close_matches(name, outputs, n=1) or sorted(outputs)
            raise InputError(f"--outputs {name}: not an output; there are: {', '.join(near)}")
        if list(names).count(name) > 1:
            raise InputError(f"--outputs {','.join(names)}: {name} is there twice")
    if names:
        kept = [outputs[name] for name in names]
        del model.graph.output[:]
        model.graph.output.extend(kept)
