"""What a builder's log means: its own words for running out of memory are a riddle."""

from __future__ import annotations

import re
from collections.abc import Sequence

from slimdeploy.errors import InputError, MissingError, SlimdeployError

_MEMORY = (
    r"out ?of ?memory|std::bad_alloc|cudaErrorMemoryAllocation|requested amount of gpu memory|"
    r"insufficient memory|no tactics? to implement .*workspace|exceeds the workspace|cudaError 2\b|"
    r"could not find any implementation for node"
)


def explain(lines: Sequence[str], source: str, workspace_gb: float | None) -> SlimdeployError:
    """One error for a failed build, from the errors it logged, newest last."""
    text = "\n".join(lines)
    if re.search(_MEMORY, text, re.IGNORECASE):
        return out_of_memory(source, workspace_gb)
    if found := re.search(r"for target\(s\) ([\w, ]+), because .*?datatypes: ([\w, ]+)", text):
        return InputError(
            f"{source}: holds {found[2].strip()}, which {found[1].strip()} cannot compute: build "
            "for a newer GPU, as --compute-capability 8.9, or quantize to another precision"
        )
    if found := re.search(r"Cannot compile operation '([^']*)' for ([^:]+): *([\w ]+)", text):
        return InputError(
            f"{source}: node '{found[1]}' cannot be compiled for {found[2].strip()} in "
            f"{found[3].strip()}: quantize --precision fp16, or leave this GPU out of "
            "--compute-capability"
        )
    if "Attention operation was not supported by a dedicated kernel" in text:
        return InputError(
            f"{source}: its Attention operators have no kernel in this precision: quantize "
            "--precision fp16, or export with matmul, softmax, matmul (without --fused-attention)"
        )
    if re.search(r"cudaError (35|100)\b|no CUDA-capable device", text):
        return MissingError(
            f"{source}: this build needs a GPU and its driver, which this machine lacks"
        )
    return InputError(f"{source}: the builder refused it: {_cause(lines)}")


def out_of_memory(source: str, workspace_gb: float | None) -> MissingError:
    """What to lower when memory ran out."""
    given = "not limited" if workspace_gb is None else f"{workspace_gb:g} GB"
    return MissingError(
        f"{source}: not enough memory to build it (workspace {given}): close other programs on "
        "the GPU, lower --max-batch, or set --workspace-gb to what is free"
    )


def killed(source: str, signal: int) -> SlimdeployError:
    """The build process was ended by a signal."""
    if signal == 9:
        return MissingError(
            f"{source}: the build was killed (signal 9), most likely because the machine ran out "
            "of memory: close other programs or lower --max-batch; nothing was written"
        )
    return MissingError(
        f"{source}: the build process crashed (signal {signal}); nothing was written: run "
        "`slimdeploy doctor`, and update the GPU driver or the backend"
    )


def _cause(lines: Sequence[str]) -> str:
    """The most telling line, without the library's source positions."""
    told = [line.strip() for line in lines if line.strip()] or ["no reason given"]
    text = next((line for line in told if "Error Code" in line), told[0]).splitlines()[0]
    text = re.sub(r"^\S+: Error Code \d+: ", "", text)
    return re.sub(r"\s+In \w+ at /\S+", "", text)[:200]
