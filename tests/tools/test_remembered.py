"""A teacher that remembers gives the answers of one that does not."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tools.remembered import Answer, Remembered


def test_an_answer_is_asked_for_once_and_stays_the_same(tmp_path: Path) -> None:
    asked: list[Tensor] = []

    def ask(images: Tensor) -> Answer:
        asked.append(images)
        return images.mean((1, 2, 3))[:, None], images.flatten(1)[:, None, :3] * len(asked), []

    first, second = torch.rand(2, 4, 3, 5, 5)
    given = [Remembered(ask, tmp_path)(images) for images in (first, second)]
    again = Remembered(ask, tmp_path)
    for images, (logits, tokens, _) in zip((first, second), given, strict=True):
        found = again(images.clone())
        assert torch.equal(found[0], logits)
        assert torch.equal(found[1], tokens)
    assert len(asked) == 2
    assert again.saved > 0


def test_answers_with_streams_are_not_kept(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 5, 5)
    teacher = Remembered(lambda x: (x[:, :, 0, 0], x[:, :, 0], [x]), tmp_path)
    assert teacher(images)[2][0] is images
    assert not list(tmp_path.iterdir())
