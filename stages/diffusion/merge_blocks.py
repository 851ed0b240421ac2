"""Where a tensor stands in the network, and what an expression means for it there."""

import re
from collections.abc import Mapping
from fractions import Fraction

from stages.diffusion.expression import Call, Sum, Term, Weights
from stages.diffusion.merge_table import LAST, MIDDLE
from stages.diffusion.single_file import UNET, VAE

TEXT_ENCODERS = "cond_stage_model."
BLOCK = re.compile(re.escape(UNET) + r"(?:(input|output)_blocks\.(\d+)|(middle_block))\.")


def part_of(key: str) -> str | None:
    """Name the network that a key of the original layout belongs to; None if it is another's."""
    for prefix, part in ((UNET, "unet"), (TEXT_ENCODERS, "text_encoder"), (VAE, "vae")):
        if key.startswith(prefix):
            return part
    return None


def block_of(key: str) -> int:
    """Give a key's place among the 26 block weights: 0 for BASE, then IN00 to OUT11.

    The UNet's time embedding goes with IN00 and its last layer with OUT11; BASE is what is not of
    the UNet. A smaller UNet has fewer blocks and leaves the last of each kind unused.

    Source: https://github.com/bbc-mc/sdweb-merge-block-weighted-gui
    """
    if key.startswith(UNET + "time_embed."):
        return 1
    if key.startswith(UNET + "out."):
        return 1 + LAST
    found = BLOCK.match(key)
    if not found:
        return 0
    if found[3]:
        return 1 + MIDDLE
    return 1 + (MIDDLE + 1 if found[1] == "output" else 0) + min(int(found[2]), LAST - MIDDLE - 1)


def at_key(weights: Mapping[Term, Fraction] | Sum, key: str) -> Weights:
    """Say what an expression means for one tensor: block weights and parts are settled.

    Returns:
        A sum of models and of methods that compute with values.
    """
    settled: Weights = {}
    for term, weight in dict(weights).items():
        for inner, share in _settled(term, key).items():
            settled[inner] = settled.get(inner, Fraction()) + weight * share
    return settled


def _settled(term: Term, key: str) -> Weights:
    if isinstance(term, str):
        return {term: Fraction(1)}
    if term.method == "mbw":
        second = dict(term.numbers)["blocks"][block_of(key)]
        mixed: Weights = {}
        for name, share in (("a", 1 - second), ("b", second)):
            for inner, weight in at_key(term.model(name), key).items():
                mixed[inner] = mixed.get(inner, Fraction()) + share * weight
        return mixed
    if term.method == "parts":
        given = dict(term.models)
        return at_key(given.get(part_of(key) or "", given["rest"])[0], key)
    models = tuple(
        (name, tuple(tuple(at_key(model, key).items()) for model in sums))
        for name, sums in term.models
    )
    return {Call(term.method, models, term.numbers): Fraction(1)}
