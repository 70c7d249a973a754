"""The dynamic slim model: each image's patches chosen block by block, in the schedule's numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slimdeploy.dynamic import Dynamic, choosing_layers
from slimdeploy.slim.dynamic.scores import choose_rows, patch_scores
from slimdeploy.slim.model import SlimVit, embed, slim_block
from slimdeploy.slim.types import Vit


class DynamicVit(SlimVit):
    """A timm `VisionTransformer` that computes, per image, the patches that score best.

    In block l queries, attention output, projection, residual and MLP are computed for the chosen
    S_l, keys and values for all of S_{l-1}, as in the static form; only which patches S_l holds is
    the image's own. Chosen among survivors, so nested. Choices carry no gradient.

    Args:
        dense: the model; its parameters are used, not copied.
        counts: tokens kept per layer, prefix included.
        dynamic: what scores the patches.
        last: global ids of the prefix tokens that layers without patches keep.
    """

    def __init__(
        self, dense: Vit, counts: Sequence[int], dynamic: Dynamic, last: Sequence[int] = (0,)
    ) -> None:
        tokens = dense.patch_embed.num_patches + dense.num_prefix_tokens
        super().__init__(dense, [range(tokens)] * len(counts))
        if dynamic.scorer == "merge":
            raise ValueError("merge: scores no patch; MergeVit is the model")
        self.counts, self.scorer = list(counts), dynamic.scorer
        self.chooses = choosing_layers(counts, tokens, dense.num_prefix_tokens)
        self.register_buffer("read", torch.tensor(list(last)), persistent=False)
        for index, weight in enumerate(dynamic.weights):
            row = None if weight is None else torch.tensor(weight)
            self.register_buffer(f"scorer{index}", row, persistent=False)

    @torch.no_grad()
    def rows(self, index: int, x: Tensor) -> Tensor | None:
        """Rows that block `index` (from 0) keeps of its input [B, k, D]: [B, q]; None for all."""
        prefix, count = self.dense.num_prefix_tokens, self.counts[index]
        if not self.chooses[index]:
            return None if count == x.shape[1] else self.get_buffer("read")
        weight = getattr(self, f"scorer{index}", None)
        scores = patch_scores(self.scorer, self.dense.blocks[index], x, prefix, weight)
        return choose_rows(scores, count, prefix)

    def forward_features(self, images: Tensor) -> Tensor:
        """Final normalised tokens that the last layer keeps, [B, |S_L|, D], from [B, C, H, W]."""
        x = embed(self.dense, images)
        for index, block in enumerate(self.dense.blocks):
            x = slim_block(block, x, self.rows(index, x))
        return self.dense.norm(x)

    @torch.no_grad()
    def choices(self, images: Tensor) -> list[Tensor]:
        """Global ids that each layer keeps for each image, [B, counts[l]], prefix first."""
        x = embed(self.dense, images)
        ids, found = torch.arange(x.shape[1], device=x.device).expand(len(x), -1), []
        for index, block in enumerate(self.dense.blocks):
            rows = self.rows(index, x)
            x, ids = slim_block(block, x, rows), take_ids(ids, rows)
            found.append(ids)
        return found


def take_ids(ids: Tensor, rows: Tensor | None) -> Tensor:
    """Global ids [B, q] of the tokens at `rows` of those that are held, [B, k]."""
    if rows is None:
        return ids
    return ids[:, rows] if rows.ndim == 1 else ids.gather(1, rows)
