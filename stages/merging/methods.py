"""Merge methods that look at whole tensors, each a pure function of float32 tensors.

Everything is computed by one thread in a fixed order, so that the same inputs give the same
bytes. A function may overwrite the tensors that it is given: they are its own.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 1 << 20  # elements whose products float32 sums up; blocks are summed in float64
COUNTED = 1 << 18  # elements counted at a time: fits the caches
MAGNITUDE, LOWER = 0x7FFFFFFF, 0x7FFF  # bits of a float32 but for its sign; the lower 15 of them
NEARLY_PARALLEL = 0.9995  # cosine above which an arc is a line, to half precision


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Go from `a` to `b` along an arc: sin((1-t)w)/sin(w) a + sin(t w)/sin(w) b.

    w is the angle between the two, taken as vectors of all their elements. Where they are nearly
    parallel, or one is zero, it is (1-t) a + t b.

    Source: K. Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.
    """
    cosine = _cosine(a, b)
    if abs(cosine) > NEARLY_PARALLEL or cosine == 0 == dot(a, a) * dot(b, b):
        return a.mul_(1 - t).add_(b.mul_(t))
    angle = np.arccos(cosine)
    first, second = np.sin((1 - t) * angle), np.sin(t * angle)
    return a.mul_(float(first / np.sin(angle))).add_(b.mul_(float(second / np.sin(angle))))


def train_difference(a: Tensor, b: Tensor, c: Tensor, scale: float) -> Tensor:
    """Add to `a` what `b` learned since `c`, most where `b` has still far to go from `a`.

    a + 1.8 scale (b - c) |b - a| / (|b - c| + |b - a|), element by element; a where b = c = a.

    Source: "trainDifference" of https://github.com/hako-mikan/sd-webui-supermerger
    """
    learned = torch.sub(b, c, out=c)
    apart = b.sub_(a).abs_()
    total = learned.abs().add_(apart)
    share = apart.div_(total).nan_to_num_(0.0)
    return a.add_(share.mul_(learned), alpha=1.8 * scale)


def ties(base: Tensor, models: Sequence[Tensor], keep: float, scale: float) -> Tensor:
    """Add the differences from `base` on which the models agree.

    Of each difference the `keep` share of largest elements stays; each element's sign is that of
    the sum; the mean of those that have this sign is added, times `scale`. The share is taken
    tensor by tensor, where the paper takes it over the whole model at once.

    Source: "TIES-Merging", arXiv 2306.01708, algorithm 1.
    """
    differences = [_trimmed(model.sub_(base), keep) for model in models]
    pieces = zip(*(difference.view(-1).split(BLOCK) for difference in differences), strict=True)
    for start, agreed in zip(base.view(-1).split(BLOCK), pieces, strict=True):
        start.add_(_agreed_mean(agreed), alpha=scale)
    return base


def dare(base: Tensor, a: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """Drop most of what `a` differs from `base` by, at random, and enlarge the rest to match.

    base + m (a - base) / keep, where m is 1 with probability `keep`, else 0. What is drawn in a
    merge depends on the seed, on the tensor's key, and on which of the expression's models `a` is
    made of, by the order in which they first appear: their names, and where their files lie,
    change nothing.

    Source: "Language Models are Super Mario", arXiv 2311.03099, equation 3; its p is 1 - keep.
    """
    kept = torch.rand(base.shape, generator=generator).lt_(keep)
    return base.add_(a.sub_(base).mul_(kept), alpha=1 / keep)


def model_stock(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    """Go from `base` towards the models' mean as far as their differences point one way.

    t mean + (1 - t) base, where t = N cos / (1 + (N - 1) cos) for N models and the mean cosine
    between their differences from `base`; a negative mean cosine counts as 0.

    Source: "Model Stock", arXiv 2403.19522, equation 2 and appendix B.
    """
    differences = [model.sub_(base) for model in models]
    cosines = [_cosine(a, b) for a, b in combinations(differences, 2)]
    cosine = float(np.maximum(0.0, np.mean(cosines))) if cosines else 1.0  # NaN stays NaN
    t = len(models) * cosine / (1 + (len(models) - 1) * cosine)
    total = differences[0]
    for difference in differences[1:]:
        total.add_(difference)
    return base.add_(total, alpha=t / len(models))


def similarity(a: Tensor, b: Tensor, bias: float) -> Tensor:
    """Keep `a` where both point alike, and take `b` where they do not.

    (1 - k) a + k b with k = 1 - clamp(cos - bias, 0, 1), where cos is taken over the outputs (the
    first dimension) for each input.

    Source: add_cosine_a of https://github.com/ljleb/sd-mecha, after supermerger's "cosineA".
    """
    k = 1 - (F.cosine_similarity(a, b, dim=0) - bias).clamp_(0, 1)
    return a.add_(b.sub_(a).mul_(k))


def dot(a: Tensor, b: Tensor) -> float:
    """Multiply and add up all elements, in an order that nothing changes."""
    pieces = zip(a.reshape(-1).split(BLOCK), b.reshape(-1).split(BLOCK), strict=True)
    return sum(torch.dot(x, y).item() for x, y in pieces)


def _cosine(a: Tensor, b: Tensor) -> float:
    """Measure the angle between two tensors; 0 if one is zero."""
    lengths = np.sqrt(dot(a, a) * dot(b, b))
    if not np.isfinite(lengths):
        return float("nan")
    return float(np.clip(dot(a, b) / lengths, -1, 1)) if lengths else 0.0


def _agreed_mean(differences: Sequence[Tensor]) -> Tensor:
    """Average, element by element, what has the sign of the sum; 0 where nothing has one."""
    elected = differences[0].clone()
    for difference in differences[1:]:
        elected.add_(difference)
    elected.sign_()
    count = torch.zeros_like(elected)
    total: Tensor | None = None
    for difference in differences:
        agrees = difference.sign().mul_(elected).gt_(0)
        count.add_(agrees)
        difference.mul_(agrees)
        total = difference if total is None else total.add_(difference)
    assert total is not None, "the parser asks for a model"
    return total.div_(count.clamp_(min=1))


def _trimmed(difference: Tensor, keep: float) -> Tensor:
    """Set all but the `keep` share of largest elements to zero, in place; equals stay together."""
    count = difference.numel()
    kept = round(keep * count)
    if kept >= count:
        return difference
    if not kept:
        return difference.zero_()
    least = _least_of_largest(difference, kept)
    for piece in difference.view(-1).split(BLOCK):
        piece.masked_fill_(piece.abs().lt(least), 0)
    return difference


def _least_of_largest(values: Tensor, count: int) -> float:
    """Find the smallest magnitude among the `count` largest ones, without a copy of the values.

    Magnitudes are ordered as their bits are. So their upper halves are counted, then the lower
    halves of those that share the upper one, which takes less time than to sort a copy in part.
    """
    bits = values.view(-1).view(torch.int32).numpy()
    blocks = [bits[start : start + COUNTED] for start in range(0, len(bits), COUNTED)]
    upper, left = _highest(((block & MAGNITUDE) >> 15 for block in blocks), count)
    alike = (m[m >> 15 == upper] & LOWER for m in (block & MAGNITUDE for block in blocks))
    lower, _ = _highest(alike, left)
    return float(np.array([upper << 15 | lower], dtype=np.int32).view(np.float32)[0])


def _highest(blocks: Iterable[NDArray[np.int32]], count: int) -> tuple[int, int]:
    """Find the number, of 16 bits, that the `count` highest end with, and how many of them it is.

    Args:
        blocks: the numbers.
        count: at least 1, at most how many numbers there are.
    """
    found = np.zeros(1 << 16, dtype=np.int64)
    for block in blocks:
        found += np.bincount(block, minlength=1 << 16)
    from_above = found[::-1]
    reached = from_above.cumsum()
    place = int(np.searchsorted(reached, count))
    return (1 << 16) - 1 - place, count - int(reached[place] - from_above[place])
