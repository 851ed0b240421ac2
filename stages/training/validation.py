"""Validation whose figure moves only when the weights do.

Each example is measured at K timesteps, one from each K-th of the schedule, with noise that
belongs to (seed, id, k). Every validation therefore asks the same questions, and the change
between two of them is measured example by example: the spread of questions, far wider than
what training changes, cancels out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.diffusion import noise
from stages.training.dataset import Dataset, ahead, in_order
from stages.training.draw import Drawn, draw_validation
from stages.training.ranks import Ranks

Floats = npt.NDArray[np.floating]
Measure = Callable[[Drawn], Tensor]  # of a batch on the device -> (B,) mean squared errors

RESAMPLES = 2000
CONFIDENCE = 0.95
EVERYDREAM2_SEED = 555


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a mean lies, with a confidence of 95 %."""

    low: float
    high: float


@torch.no_grad()
def validation_errors(
    measure: Measure,
    dataset: Dataset,
    ranks: Ranks,
    *,
    seed: int,
    timesteps_per_example: int,
    total_timesteps: int,
    batch_size: int,
    full_batch: int,
) -> Tensor:
    """Measure every example at its K timesteps.

    Args:
        measure: gives the errors of a batch.
        dataset: what to measure.
        ranks: who shares the work.
        seed: of noise and timesteps.
        timesteps_per_example: K.
        total_timesteps: of the noise schedule, 1000.
        batch_size: changes the speed, not the result.
        full_batch: rows that smaller batches are filled up to.

    Returns:
        (N, K) float32 on the CPU, rows in the order of the dataset's ids, columns from the
        cleanest K-th of the schedule to the noisiest.
    """
    batches = in_order(dataset, batch_size)
    jobs = [(rows, k) for rows in batches for k in range(timesteps_per_example)]
    share = -(-len(jobs) // ranks.count)
    own = jobs[ranks.rank * share :][:share]  # in one piece: few examples are read by two
    # all measure equally often, for between two batches they agree whether to stop
    idle = (own or jobs)[:1] * (share - len(own))

    def drawn(job: tuple[list[int], int]) -> Drawn:
        count = timesteps_per_example
        return draw_validation(dataset, seed, count, total_timesteps, full_batch, *job)

    found = [measure(batch.to(ranks.device)) for batch in ahead(drawn, own + idle)]
    errors = torch.zeros(len(dataset), timesteps_per_example)
    for (rows, k), of_rows in zip(own, found, strict=False):
        errors[rows, k] = of_rows[: len(rows)].float().cpu()
    ranks.add_up([errors])
    return errors


def everydream2_loss(errors: Floats, ids: Sequence[str]) -> float:
    """Give the figure that EveryDream2 would: one random timestep and noise per example.

    A random one of K stratified timesteps is a timestep drawn evenly from all, so nothing needs
    to be measured again.

    Args:
        errors: (N, K).
        ids: of the N examples.

    Source: EveryDream2trainer, data/every_dream_validation.py, seed 555.
    """
    count = errors.shape[1]
    picks = [int(count * noise.draw_uniform(EVERYDREAM2_SEED, id_)) for id_ in ids]
    return float(errors[np.arange(len(picks)), picks].mean())


def paired_interval(differences: Floats) -> Interval:
    """Say where the mean difference lies, if the examples had been others of their kind.

    Args:
        differences: (N,), after minus before, of each example.

    Source: the percentile bootstrap; B. Efron, "Bootstrap Methods", Annals of Statistics 7, 1979.
    """
    means = _resamples(len(differences)) @ np.asarray(differences, np.float64)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


@lru_cache(maxsize=4)
def _resamples(count: int) -> npt.NDArray[np.float64]:
    """Weigh `count` examples as they appear in each of RESAMPLES draws with replacement."""
    rng = noise.generator("bootstrap", count)
    return rng.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
