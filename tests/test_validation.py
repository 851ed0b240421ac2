"""Validation: a figure that moves only when the weights do, and an interval around its change."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.training.dataset import CAPTION, LATENTS, Dataset, epoch_batches
from stages.training.draw import Drawn, stratified_timestep
from stages.training.ranks import Ranks, alone
from stages.training.validation import everydream2_loss, paired_interval, validation_errors


def dataset(folder: Path, ids: list[str]) -> Dataset:
    """Write examples whose latents and captions depend on their id alone; two shapes."""
    shapes = {id_: (4, 4, 4) if int(id_) % 3 else (4, 2, 6) for id_ in ids}
    tensors = {LATENTS + id_: torch.full(shape, float(id_)) for id_, shape in shapes.items()}
    tensors |= {CAPTION + id_: torch.full((3, 2), float(int(id_) % 2)) for id_ in ids}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "000000.safetensors")
    return Dataset(folder)


def measure(drawn: Drawn) -> Tensor:
    """Stand in for a UNet: every argument matters, and each picture is measured by itself."""
    captions = drawn.captions.sum((1, 2))[:, None, None, None]
    mixed = drawn.latents + drawn.noise * drawn.timesteps[:, None, None, None] + captions
    return mixed.square().flatten(1).mean(1)


def errors(
    folder: Path, ids: list[str], batch_size: int, seed: int = 1, *, full_batch: int = 0
) -> dict[tuple[str, int], float]:
    data = dataset(folder, ids)
    found = validation_errors(
        measure,
        data,
        alone("cpu"),
        seed=seed,
        timesteps_per_example=4,
        total_timesteps=1000,
        batch_size=batch_size,
        full_batch=full_batch,
    )
    return {(id_, k): float(found[row, k]) for row, id_ in enumerate(data.ids) for k in range(4)}


IDS = [str(i) for i in range(11)]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_errors_are_equal_for_any_batch_size_and_order(tmp_path: Path, batch_size: int) -> None:
    """Also where batches are filled up to a size, as for a compiled UNet."""
    found = errors(tmp_path, IDS, 3)
    assert errors(tmp_path, IDS[::-1], batch_size) == pytest.approx(found)
    assert errors(tmp_path, IDS, batch_size, full_batch=batch_size) == pytest.approx(found)


@pytest.mark.parametrize("count", [2, 3, 30])
def test_processes_share_the_examples_and_measure_equally_often(tmp_path: Path, count: int) -> None:
    """Between two batches all agree whether to stop."""

    class OneOf(Ranks):
        def add_up(self, tensors: Sequence[Tensor]) -> None:
            pass

    data, alone_found = dataset(tmp_path, IDS), errors(tmp_path, IDS, 3)
    found, read, measured = [], [], []
    for rank in range(count):
        drawn: list[tuple[str, ...]] = []

        def noted(batch: Drawn, drawn: list[tuple[str, ...]] = drawn) -> Tensor:
            drawn.append(batch.ids)
            return measure(batch)

        found.append(
            validation_errors(
                noted,
                data,
                OneOf(rank, count, torch.device("cpu")),
                seed=1,
                timesteps_per_example=4,
                total_timesteps=1000,
                batch_size=3,
                full_batch=0,
            )
        )
        read.append({id_ for ids in drawn for id_ in ids})
        measured.append(len(drawn))
    both = torch.stack(found)
    assert (both != 0).sum(0).eq(1).all(), "each question is put once"
    together = {(id_, k): both.sum(0)[row, k] for row, id_ in enumerate(data.ids) for k in range(4)}
    assert together == pytest.approx(alone_found)
    assert len({*measured}) == 1
    # a batch at the border of two shares is read twice
    assert sum(map(len, read)) <= len(IDS) + 3 * (count - 1)


def test_an_examples_errors_do_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    lonely, together = errors(tmp_path, ["4"], 3), errors(tmp_path, IDS, 3)
    assert lonely == pytest.approx({key: together[key] for key in lonely})


def test_another_seed_asks_other_questions(tmp_path: Path) -> None:
    assert errors(tmp_path, IDS, 3, seed=2) != pytest.approx(errors(tmp_path, IDS, 3))


def test_timesteps_are_one_from_each_part_of_the_schedule() -> None:
    for id_ in IDS:
        drawn = [stratified_timestep(k, 4, 1000, 1, id_) for k in range(4)]
        assert [t // 250 for t in drawn] == [0, 1, 2, 3]
    assert {stratified_timestep(0, 1, 3, 1, str(i)) for i in range(50)} == {0, 1, 2}


def test_everydream2s_figure_takes_one_timestep_of_each_example_and_stays() -> None:
    found = np.arange(4000.0).reshape(1000, 4) % 4  # the error is the number of the part
    ids = [str(i) for i in range(1000)]
    loss = everydream2_loss(found, ids)
    assert loss == everydream2_loss(found, ids)
    assert loss == pytest.approx(1.5, abs=0.15)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [paired_interval(rng.normal(0.3, 1, 80)) for _ in range(200)]
    assert 180 <= sum(i.low <= 0.3 <= i.high for i in intervals) <= 199


def test_pairing_sees_a_change_far_below_the_spread_of_the_examples() -> None:
    rng = np.random.default_rng(0)
    before = rng.gamma(2, 0.07, 300)  # losses of pictures differ much
    after = before - 0.001 + rng.normal(0, 0.002, 300)
    paired = paired_interval(after - before)
    assert paired.high < 0
    assert paired.high - paired.low < 0.001
    unpaired = paired_interval(rng.permutation(after) - before)
    assert unpaired.low < 0 < unpaired.high


def test_each_row_comes_once_an_epoch_in_batches_of_one_shape(tmp_path: Path) -> None:
    data = dataset(tmp_path, IDS)
    batches = epoch_batches(data, 2, seed=1, epoch=5)
    assert sorted(row for batch in batches for row in batch) == list(range(len(IDS)))
    assert all(len({data.shapes[row] for row in batch}) == 1 for batch in batches)
    assert batches == epoch_batches(data, 2, seed=1, epoch=5)
    assert batches != epoch_batches(data, 2, seed=1, epoch=6)
    assert batches != epoch_batches(data, 2, seed=2, epoch=5)
