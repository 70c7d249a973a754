"""The slim model that merges: blocks compute the means of alike patches, in static numbers.

See `slimdeploy.dynamic` for what `merge` means. Patches are compared as they enter a block, and the
block's queries, keys, values and MLP are those of the merged tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimdeploy.dynamic import choosing_layers
from slimdeploy.slim.dynamic.scores import standardised
from slimdeploy.slim.model import SlimVit, embed, slim_block
from slimdeploy.slim.types import Vit


@dataclass(frozen=True)
class Groups:
    """Which tokens of the dense model each row stands for.

    Attributes:
        of: the row of every token, [B, N].
        size: tokens that each row is the mean of, [B, k, 1].
        ids: of each group the token that the others merged into, [B, k].
    """

    of: Tensor
    size: Tensor
    ids: Tensor

    @classmethod
    def single(cls, x: Tensor) -> Groups:
        """Every row of x [B, N, D] for itself."""
        ids = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        return cls(ids, torch.ones_like(x[..., :1]), ids)

    def merged(self, to: Tensor, count: int, prefix: int) -> Groups:
        """The groups after row i has moved to row `to[:, i]`, of `count` rows."""
        rows = torch.arange(to.shape[1], device=to.device)
        second = (rows >= prefix) & ((rows - prefix) % 2 == 1)  # of a pair: it keeps its name
        ranked = (rows + len(rows) * second).expand_as(to)
        leads = torch.zeros_like(to[:, :count]).scatter_reduce_(1, to, ranked, "amax") % len(rows)
        of, ids = to.gather(1, self.of), self.ids.gather(1, leads)
        return Groups(of, sums(self.size, to, count), ids)

    def only(self, rows: Tensor | None) -> Groups:
        """Those of prefix tokens alone, each of which stands for itself; None for all groups."""
        if rows is None:
            return self
        return Groups(self.of, self.size[:, rows], self.ids[:, rows])

    def bias(self) -> Tensor:
        """What is added to the attention logits of each row as a key, [B, k]."""
        return self.size[..., 0].log()

    def means(self, x: Tensor) -> Tensor:
        """The mean of each group over tokens of the dense model, [B, k, D] from [B, N, D]."""
        return sums(x, self.of, self.size.shape[1]) / self.size


def sums(x: Tensor, to: Tensor, count: int) -> Tensor:
    """Rows of x [B, k, D] added up where `to` [B, k] sends them, [B, count, D]."""
    return x.new_zeros(len(x), count, x.shape[-1]).scatter_add(1, to[..., None].expand_as(x), x)


def similarities(x: Tensor, prefix: int) -> Tensor:
    """Of the 1st, 3rd, ... patch (rows) to the 2nd, 4th, ...: x̂ᵢ·x̂ⱼ, [B, ⌈p/2⌉, ⌊p/2⌋]."""
    with torch.autocast(x.device.type, enabled=False):
        patches = standardised(x[:, prefix:].float())
        return patches[:, ::2] @ patches[:, 1::2].transpose(1, 2)


def match(similar: Tensor, gone: int, prefix: int) -> Tensor:
    """Where each row goes when the `gone` most similar pairs merge, [B, k].

    First come the prefix, then the first patches of pairs that stay, the most similar ahead, then
    the second ones, into which others merge. Of equal ones the first merges, as by ONNX's TopK.

    Args:
        similar: as `similarities` gives them.
    """
    best, partner = similar.max(-1)
    order = best.argsort(dim=1, descending=True, stable=True)
    moving, staying = order[:, :gone], order[:, gone:]
    batch, first, second = similar.shape
    behind = prefix + first - gone
    to = torch.arange(prefix + first + second, device=similar.device).repeat(batch, 1)
    places = torch.arange(prefix, behind, device=to.device).expand(batch, -1)
    to.scatter_(1, prefix + 2 * staying, places)
    to[:, prefix + 1 :: 2] = torch.arange(behind, behind + second, device=to.device)
    return to.scatter_(1, prefix + 2 * moving, behind + partner.gather(1, moving))


class MergeVit(SlimVit):
    """A timm `VisionTransformer` whose blocks compute the means of alike patches.

    With as many tokens as the dense model has it is the dense model. Which patches merge carries no
    gradient; their means do.

    Args:
        dense: the model; its parameters are used, not copied.
        counts: tokens that each block computes, prefix included.
        last: global ids of the prefix tokens that layers without patches keep.
    """

    def __init__(self, dense: Vit, counts: Sequence[int], last: Sequence[int] = (0,)) -> None:
        tokens = dense.patch_embed.num_patches + dense.num_prefix_tokens
        super().__init__(dense, [range(tokens)] * len(counts))
        self.counts = list(counts)
        self.chooses = choosing_layers(counts, tokens, dense.num_prefix_tokens)
        self.register_buffer("read", torch.tensor(list(last)), persistent=False)

    @torch.no_grad()
    def moves(self, index: int, x: Tensor) -> Tensor | None:
        """Where the rows that enter block `index` (from 0), [B, k, D], go; None if they stay."""
        if not self.chooses[index]:
            return None
        prefix = self.dense.num_prefix_tokens
        return match(similarities(x, prefix), x.shape[1] - self.counts[index], prefix)

    def enter(
        self, index: int, x: Tensor, groups: Groups, to: Tensor | None
    ) -> tuple[Tensor, Groups]:
        """What block `index` computes of the rows that enter it, moved as `to` says."""
        if to is None:
            return x, groups
        after = groups.merged(to, self.counts[index], self.dense.num_prefix_tokens)
        return sums(x * groups.size, to, self.counts[index]) / after.size, after

    def rows(self, index: int, x: Tensor) -> Tensor | None:
        """Rows of its merged tokens [B, k, D] that block `index` asks for; None for all."""
        return None if self.counts[index] == x.shape[1] else self.get_buffer("read")

    def step(
        self, index: int, x: Tensor, groups: Groups, to: Tensor | None
    ) -> tuple[Tensor, Groups]:
        """Block `index`: the rows after it, and what they stand for."""
        x, groups = self.enter(index, x, groups, to)
        rows = self.rows(index, x)
        return slim_block(self.dense.blocks[index], x, rows, groups.bias()), groups.only(rows)

    def forward_features(self, images: Tensor) -> Tensor:
        """Final normalised tokens that the last layer keeps, [B, |S_L|, D], from [B, C, H, W]."""
        x = embed(self.dense, images)
        groups = Groups.single(x)
        for index in range(len(self.counts)):
            x, groups = self.step(index, x, groups, self.moves(index, x))
        return self.dense.norm(x)

    @torch.no_grad()
    def choices(self, images: Tensor) -> list[Tensor]:
        """Of each layer's groups the patch that the others merged into, [B, counts[l]]."""
        x = embed(self.dense, images)
        groups, found = Groups.single(x), []
        for index in range(len(self.counts)):
            x, groups = self.step(index, x, groups, self.moves(index, x))
            found.append(groups.ids)
        return found
