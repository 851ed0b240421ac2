"""CMMD: how far drawn pictures are from real ones, as a CLIP sees them; less is nearer.

Source: S. Jayasumana and others, Rethinking FID: Towards a Better Evaluation Metric for Image
    Generation (CVPR 2024, arXiv 2401.09603): the squared maximum mean discrepancy of normalized
    CLIP embeddings under a Gaussian kernel of sigma 10, times 1,000. The estimator is the unbiased
    one (A. Gretton and others, A Kernel Two-Sample Test, JMLR 13 (2012), equation 3), which needs
    no large sample, and may be a little below 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.choice.scores import resampled_prompts

Floats = npt.NDArray[np.float64]
SIGMA = 10.0
SCALE = 1000.0


@dataclass(frozen=True, slots=True)
class KernelSums:
    """Kernel values of drawn and real pictures, summed by prompt, from which CMMD follows."""

    counts: Floats  # (P,) pictures of each prompt
    within: Floats  # (P, P) between drawn ones, a picture with itself left out
    across: Floats  # (P,) between drawn and real ones
    real: int  # pictures
    real_mean: float  # between two different real ones

    def cmmd(self, taken: Floats) -> Floats:
        """Give CMMD of resampled prompts.

        The copies of a prompt that was drawn twice are not compared with each other: their
        likeness would say that the model draws less variety than it does.

        Args:
            taken: (samples, P) how often each prompt was drawn.

        Returns:
            (samples,), NaN where one picture alone was drawn: it cannot be compared with another.
        """
        numbers = taken * self.counts
        own = np.diag(self.within)
        total = np.einsum("sp,pq,sq->s", taken, self.within, taken, optimize=True)
        total -= (taken**2 - taken) @ own
        pairs = numbers.sum(1) ** 2 - (numbers**2).sum(1)  # of different prompts
        pairs += taken @ (self.counts * (self.counts - 1))
        drawn = total / np.where(pairs > 0, pairs, np.nan)
        across = taken @ self.across / (numbers.sum(1) * self.real)
        result: Floats = SCALE * (drawn + self.real_mean - 2 * across)
        return result


def kernel_sums(drawn: Floats, prompts: Sequence[str], real: Floats) -> KernelSums:
    """Sum the kernel by prompt.

    Args:
        drawn: (n, D) embeddings of length 1.
        prompts: of each.
        real: (m, D), m at least 2.
    """
    names = list(dict.fromkeys(prompts))
    member = np.zeros((len(names), len(drawn)))
    member[[names.index(prompt) for prompt in prompts], range(len(prompts))] = 1
    own = kernel(drawn, drawn)
    np.fill_diagonal(own, 0)
    others = kernel(real, real)
    pairs = len(real) * (len(real) - 1)
    return KernelSums(
        counts=member.sum(1),
        within=member @ own @ member.T,
        across=member @ kernel(drawn, real).sum(1),
        real=len(real),
        real_mean=float((others.sum() - np.trace(others)) / pairs),
    )


def kernel(a: Floats, b: Floats) -> Floats:
    """Give exp(-|x - y|^2 / (2 sigma^2)) for each x of a and y of b, (len(a), len(b))."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    result: Floats = np.exp(-np.maximum(squares, 0) / (2 * SIGMA**2))
    return result


def cmmd(
    drawn: Floats, prompts: Sequence[str], real: Floats, samples: int, seed: int
) -> tuple[float, Floats]:
    """Give CMMD, and that of resampled prompts: (samples,), less those that have none."""
    sums = kernel_sums(drawn, prompts, real)
    taken = resampled_prompts(len(sums.counts), samples, seed).astype(float)
    resampled = sums.cmmd(taken)
    value = float(sums.cmmd(np.ones((1, len(sums.counts))))[0])
    return value, resampled[np.isfinite(resampled)]
