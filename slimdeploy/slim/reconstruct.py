"""Block-wise reconstruction by gradient, as in the paper's Algorithm 1.

The block just slimmed is trained so that the next layer's output, at the tokens that the next layer
keeps, stays what the dense model's is. Its input is the dense Z_{t-1}; only its own parameters
move; the gradient flows through the frozen, already slimmed next block. Inputs and targets are
computed once and cached, so an epoch costs two blocks, not a network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slimdeploy.slim.batches import Batches, Held, InMemory
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.model import rows_among, select, slim_block
from slimdeploy.slim.types import VitBlock
from slimdeploy.store import Store


@dataclass(frozen=True)
class GradientOptions:
    """Where the paper is silent (optimiser, rate), a plain AdamW; epochs as in the paper."""

    epochs: int = 3
    lr: float = 1e-4
    clip: float = 1.0


@dataclass
class LayerProblem:
    """Cached data of one layer's reconstruction: pairs of Z_{t-1} and the target of layer t+1.

    Attributes:
        inputs: dense Z_{t-1} per batch, [B, N, D].
        middle: dense Z_t, alike.
        targets: dense Z_{t+1} at the tokens that layer t+1 keeps, [B, |S_{t+1}|, D].
    """

    state: Calibration
    layer: int
    inputs: list[Tensor]
    middle: list[Tensor]
    targets: list[Tensor]

    @classmethod
    def collect(cls, state: Calibration, layer: int, store: Store | None = None) -> LayerProblem:
        """Run the dense model once over the calibration images.

        What `state` does not keep anyway lies in `store`, as long as that is open.

        Raises:
            InputError: if neither memory nor the disk has room for it.
        """

        def hold() -> Held:
            if store is None or state.holds_streams:
                return InMemory()
            return Batches(store, len(state.images))

        inputs, middle, targets = hold(), hold(), hold()
        later = torch.tensor(state.keep[layer + 1])
        for before, between, after in state.streams(layer - 1, layer, layer + 1):
            inputs.append(before)
            middle.append(between)
            targets.append(select(after, later))
        return cls(state, layer, list(inputs), list(middle), list(targets))

    def output(self, x: Tensor, keep: list[int]) -> Tensor:
        """Layer t+1's output when layer t keeps `keep`: [B, N, D] -> [B, |S_{t+1}|, D]."""
        first, second = self.state.slim.blocks[self.layer - 1 : self.layer + 1]
        x = slim_block(first, x, rows_among(keep, range(self.state.tokens)))
        return slim_block(second, x, self.later_rows(keep))

    def later_rows(self, keep: list[int]) -> Tensor | None:
        """Where the tokens that layer t+1 keeps stand among `keep`."""
        return rows_among(self.state.keep[self.layer + 1], keep)

    @torch.no_grad()
    def error(self, keep: list[int]) -> float:
        """The paper's E_{t+1}, relative: squared error over the target's squared norm."""
        wrong = 0.0
        for x, target in zip(self.inputs, self.targets, strict=True):
            wrong += float((self.output(x, keep) - target).double().square().sum())
        return wrong / self.norm()

    def norm(self) -> float:
        """The target's squared norm."""
        return sum(float(target.double().square().sum()) for target in self.targets)


def reconstruct_by_gradient(
    problem: LayerProblem, keep: list[int], options: GradientOptions, seed: int
) -> None:
    """Train the block of `problem.layer` in place for `keep`."""
    block: VitBlock = problem.state.slim.blocks[problem.layer - 1]
    parameters = list(block.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.0)
    order = torch.Generator().manual_seed(seed)
    for _ in range(options.epochs):
        for index in torch.randperm(len(problem.inputs), generator=order).tolist():
            with torch.enable_grad():
                error = problem.output(problem.inputs[index], keep) - problem.targets[index]
                loss = error.square().sum() / problem.targets[index].square().sum()
                grads = torch.autograd.grad(loss, parameters)
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
            torch.nn.utils.clip_grad_norm_(parameters, options.clip)
            optimiser.step()
            optimiser.zero_grad()
