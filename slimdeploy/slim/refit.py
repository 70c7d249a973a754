"""Closed-form recovery: solve a block's output layers anew after tokens were dropped.

Dropping tokens takes their values out of every attention that read them. What the remaining ones
can say in their place is linear in two weights of each block: the attention's projection and the
MLP's second layer. Both are solved by ridge regression towards the dense block's residual stream at
the kept tokens, with the old weights as the prior:

    min_Δ  sum_i w_i || (a_i W + Δ a_i) - y_i ||² + λ ||Δ||²

From unlabelled images, without gradients, at no cost at inference. The normal equations are summed
batch by batch, so their size is that of one weight matrix however many images there are; of the
streams of activations no more than four exist at a time, on disk where memory is short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from slimdeploy.forward.ridge import Floats, Normal, RidgeOptions
from slimdeploy.run_state import RunState
from slimdeploy.slim.batches import Batches, Held, InMemory, replaced
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.model import (
    attention_half,
    attention_mix,
    embed,
    local_rows,
    mlp_half,
    project,
    select,
)
from slimdeploy.slim.types import Vit, VitBlock
from slimdeploy.store import open_store

Rows: TypeAlias = Tensor | Sequence[Tensor | None] | None
"""Kept rows of a block: the same for every batch, or each batch's own."""


def _each(rows: Rows, batches: int) -> Sequence[Tensor | None]:
    return [rows] * batches if rows is None or isinstance(rows, Tensor) else rows


@dataclass
class _Refit:
    """One block being refitted on (slim input, dense target) pairs, batch by batch.

    Attributes:
        hold: makes what activations of all images are put aside in.
        solved: the block's weights are those of a run that was killed; only run it.
    """

    block: VitBlock
    rows: Sequence[Tensor | None]
    weights: Tensor
    options: RidgeOptions
    hold: Callable[[], Held] = InMemory
    solved: bool = False
    key_bias: Sequence[Tensor | None] | None = None

    def projection(self, inputs: Iterable[Tensor], targets: Iterable[Tensor]) -> Held:
        """Solve the attention's projection towards the dense stream after attention.

        Returns:
            The slim stream after attention, with the solved projection, as `hold` holds it.
        """
        block, attn = self.block, self.block.attn
        normal = self._normal(attn.proj)
        mixes, stream = self.hold(), self.hold()
        biases = self.key_bias or [None] * len(self.rows)
        for x, rows, bias, target in zip(inputs, self.rows, biases, targets, strict=True):
            base, mix = select(x, rows), attention_mix(block, x, rows, bias)
            if not self.solved:
                missing = target - (base + block.ls1(project(attn, mix)))
                self._add(normal, mix, missing)
            stream.append(base)
            mixes.append(mix)
        if not self.solved:
            _apply(block, "ls1", attn.proj, *normal.solve(self.options.strength))
        for index, (base, mix) in enumerate(zip(stream, mixes, strict=True)):
            stream[index] = base + block.ls1(project(attn, mix))
        mixes.release()
        return stream

    def second_layer(self, inputs: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
        """Solve the MLP's second layer towards the dense stream after the block."""
        block, mlp = self.block, self.block.mlp
        normal = self._normal(mlp.fc2)
        for x, target in zip(inputs, targets, strict=True):  # targets come as they are read
            if self.solved:
                continue
            hidden = _mlp_hidden(block, x)
            found = x + block.ls2(mlp.drop2(mlp.fc2(hidden)))
            self._add(normal, hidden, target - found)
        if not self.solved:
            _apply(block, "ls2", mlp.fc2, *normal.solve(self.options.strength))

    def _normal(self, linear: nn.Linear) -> Normal:
        return Normal(linear.bias is not None, judged=self.options.strength == "auto")

    def _add(self, normal: Normal, inputs: Tensor, missing: Tensor) -> None:
        """Add the next batch: inputs [B, q, I] and what is missing of the target, [B, q, O]."""
        normal.add_images(inputs.numpy(), missing.numpy(), self.weights.numpy())


def _mlp_hidden(block: VitBlock, x: Tensor) -> Tensor:
    mlp = block.mlp
    hidden: Tensor = mlp.norm(mlp.drop1(mlp.act(mlp.fc1(block.norm2(x)))))
    return hidden


_SOLVED = ("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias",
           "ls1.gamma", "ls2.gamma")  # fmt: skip


def _solved_parts(block: VitBlock) -> dict[str, Tensor]:
    """What a refit changes of a block."""
    return {name: part.data for name, part in block.named_parameters() if name in _SOLVED}


def _recalled(saved: RunState, name: str, block: VitBlock) -> bool:
    """Put what a killed run had solved into the block; False if there is nothing."""
    parts = _solved_parts(block)
    known = saved.recall_arrays(name, {part: x.shape for part, x in parts.items()})
    for part, value in (known or {}).items():
        parts[part].copy_(torch.from_numpy(value))
    return known is not None


def _apply(
    block: VitBlock, scale: str, linear: nn.Linear, change: Floats, shift: Floats | None
) -> None:
    """Add a solved change to a linear layer, folding the LayerScale behind it into the weight."""
    gamma = getattr(getattr(block, scale), "gamma", None)
    if gamma is not None:
        linear.weight.data.mul_(gamma[:, None])
        if linear.bias is not None:
            linear.bias.data.mul_(gamma)
        gamma.data.fill_(1.0)
    linear.weight.data += torch.from_numpy(change.T).to(linear.weight.dtype)
    if shift is not None:
        linear.bias.data += torch.from_numpy(shift).to(linear.weight.dtype)


@torch.no_grad()
def refit_block(
    block: VitBlock,
    dense_block: VitBlock,
    inputs: Sequence[Tensor],
    dense_inputs: Sequence[Tensor],
    rows: Rows,
    dense_rows: Rows,
    weights: Tensor,
    options: RidgeOptions,
) -> None:
    """Refit one block in place. Rows are [q], or for choices per image [B, q] batch by batch.

    Args:
        block: changed; reads `inputs` [B, k, D] and keeps `rows` of them.
        dense_block: the original; reads `dense_inputs` [B, N, D]. Its residual stream at
            `dense_rows`, the same tokens, is the target.
        weights: weight of each kept token, [q].
    """
    wanted = _each(dense_rows, len(inputs))
    after = [attention_half(dense_block, *pair) for pair in zip(dense_inputs, wanted, strict=True)]
    refit = _Refit(block, _each(rows, len(inputs)), weights, options)
    refit.second_layer(refit.projection(inputs, after), (mlp_half(dense_block, x) for x in after))


def token_weights(keep: Sequence[int], reads: Sequence[int], options: RidgeOptions) -> Tensor:
    """Weight of each kept token, [q]: those that the head reads count more."""
    return torch.tensor([options.read_weight if token in reads else 1.0 for token in keep])


@dataclass(frozen=True)
class Kept:
    """What a block keeps: as rows of its input, and as rows of the dense block's output.

    Attributes:
        weights: weight of each kept token, [q].
        entering: batches [B, k, D] that the block reads in place of the stream, if it does.
        key_bias: per batch what is added to the attention logits of its keys, [B, k].
        targets: per batch what makes [B, q, D] of the dense stream [B, N, D], if not its rows.
    """

    rows: Rows
    dense_rows: Rows
    weights: Tensor
    entering: Held | None = None
    key_bias: Sequence[Tensor] | None = None
    targets: Sequence[Callable[[Tensor], Tensor]] | None = None

    def wanted(self, dense: Iterator[Tensor], batches: int) -> Iterator[Tensor]:
        """What the block is to give, of the dense block's stream, batch by batch."""
        if self.targets is None:
            return map(select, dense, _each(self.dense_rows, batches))
        return (pick(x) for pick, x in zip(self.targets, dense, strict=True))


def refit_model(
    state: Calibration,
    model: Vit,
    keep: Sequence[Sequence[int]],
    options: RidgeOptions | None = None,
    progress: Any = None,
    saved: RunState | None = None,
) -> None:
    """Refit all blocks of `model` in place, first to last, for a complete schedule.

    Each block reads what the refitted blocks before it give, so that it also corrects what they
    could not. `state.dense` gives the targets; `progress(layer)` is called after each layer;
    `saved` holds the blocks that a killed run had solved.

    Raises:
        InputError: if neither memory nor the disk has room for the activations.
    """
    options = options or RidgeOptions()
    every = local_rows(keep, state.tokens)

    def kept(index: int, *_: object) -> Kept:
        ids = keep[index]
        weights = token_weights(ids, state.geometry.head_reads, options)
        return Kept(every[index], None if len(ids) == state.tokens else torch.tensor(ids), weights)

    refit_blocks(state, model, kept, options, progress, saved)


@torch.no_grad()
def refit_blocks(
    state: Calibration,
    model: Vit,
    kept: Callable[[int, Held, Callable[[], Held]], Kept],
    options: RidgeOptions,
    progress: Any = None,
    saved: RunState | None = None,
) -> None:
    """Refit all blocks of `model` in place while its stream and the dense one run side by side.

    Args:
        kept: what the block of this index (from 0) keeps of its input, batches [B, k, D]; the
            third argument makes what holds others in their place.
        progress: called with the number of each finished layer, from 1.
        saved: blocks that a killed run had solved: they run, and are not solved again.

    Raises:
        InputError: if neither memory nor the disk has room for the activations.
    """
    saved = saved or RunState(None, {})
    with open_store(state.cache_bytes) as store:
        hold = partial(Batches, store, len(state.images))
        dense: Held = hold()
        stream: Held = hold()
        for images in state.batches():
            dense.append(embed(state.dense, images))
            stream.append(embed(model, images))
        pairs = zip(model.blocks, state.dense.blocks, strict=True)
        for index, (block, dense_block) in enumerate(pairs):
            found, name = kept(index, stream, hold), f"refit-{index + 1:03d}"
            if found.entering is not None:
                stream.release()
                stream = found.entering
            done, batches = _recalled(saved, name, block), len(stream)
            rows = _each(found.rows, batches)
            refit = _Refit(block, rows, found.weights, options, hold, done, found.key_bias)
            after = replaced(dense, partial(attention_half, dense_block, rows=None))
            halves = refit.projection(stream, found.wanted(after, batches))
            stream.release()
            stream, after = halves, replaced(dense, partial(mlp_half, dense_block))
            refit.second_layer(stream, found.wanted(after, batches))
            if not done:
                parts = _solved_parts(block)
                saved.remember_arrays(name, {part: x.numpy() for part, x in parts.items()})
            for _ in replaced(stream, partial(mlp_half, block)):
                pass
            if progress is not None:
                progress(index + 1)


__all__ = ["Kept", "refit_block", "refit_blocks", "refit_model", "token_weights"]
