"""What is drawn at random to learn from: captions that are left out."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.training.dataset import CAPTION, LATENTS, NO_CAPTION, Dataset
from stages.training.draw import draw_training
from tests.tiny_training import PARAMS

COUNT = 400


def dataset(folder: Path) -> Dataset:
    """Write examples whose captions are 1, where the empty one is 0."""
    ids = [f"{i:03}" for i in range(COUNT)]
    tensors = {LATENTS + id_: torch.zeros(4, 2, 2) for id_ in ids}
    tensors |= {CAPTION + id_: torch.ones(3, 2) for id_ in ids}
    save_file(tensors, folder / "000000.safetensors")
    save_file({CAPTION: torch.zeros(3, 2)}, folder / NO_CAPTION)
    return Dataset(folder)


def left_out(data: Dataset, rate: float, epoch: int, batch: int) -> list[bool]:
    """Tell of each example whether an epoch sees it without its caption."""
    params = replace(PARAMS, caption_dropout=rate)
    found: list[bool] = []
    for first in range(0, COUNT, batch):
        drawn = draw_training(data, params, 1000, 0, epoch, range(first, first + batch))
        found += (drawn.captions.sum((1, 2)) == 0).tolist()
    return found


def test_captions_are_left_out_as_often_as_told_and_others_in_each_epoch(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    first, second = (left_out(data, 0.1, epoch, 40) for epoch in (1, 2))
    assert 0.05 < sum(first) / COUNT < 0.15
    assert first != second
    assert not any(left_out(data, 0.0, 1, 40))


def test_which_captions_are_left_out_does_not_depend_on_the_batches(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    assert left_out(data, 0.1, 1, 40) == left_out(data, 0.1, 1, 8)
