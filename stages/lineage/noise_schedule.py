"""Which noise schedule a model learnt on, as the metadata of its file tell it."""

from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Any

ZERO_TERMINAL_SNR = "cosmopolitan.zero_terminal_snr"
# Empty tensors by which A1111, Forge and, for its larger models, ComfyUI know a model that predicts
# v, and one that draws from pure noise besides; no program reads our metadata.
V_PRED, ZTSNR = "v_pred", "ztsnr"
MARKERS = (V_PRED, ZTSNR)


def zero_terminal_snr(metadata: Mapping[str, str], keys: Collection[str] = ()) -> bool:
    """Tell whether a model learnt that the last timestep is pure noise, and must draw from there.

    Args:
        metadata: of its file.
        keys: of its tensors, where another program may have marked it.

    Source: "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv 2305.08891.
    """
    return metadata.get(ZERO_TERMINAL_SNR) == "true" or ZTSNR in keys


def noise_schedule(
    recipe: Mapping[str, Any], parents: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Write what a new file says of it: what its training says, or most of a merge's inputs.

    A model of which a merge takes the autoencoder alone, or nothing, has no say.

    Args:
        recipe: of the file; `weights` are those of its UNet.
        parents: metadata of the files that it is made of, by name.
    """
    learnt = recipe.get("params", {}).get("zero_terminal_snr")
    if learnt is None:
        marked = [name for name, metadata in parents.items() if zero_terminal_snr(metadata)]
        weights = recipe.get("weights", {})
        learnt = outweigh(marked, {name: Fraction(weights.get(name, 1)) for name in parents})
    return {ZERO_TERMINAL_SNR: "true"} if learnt else {}


def outweigh(marked: Collection[str], weights: Mapping[str, Fraction]) -> bool:
    """Tell whether some of a merge's models weigh as much in it as the others, and anything."""
    share = sum((weight for name, weight in weights.items() if name in marked), Fraction())
    return share > 0 and share >= sum(weights.values(), Fraction()) - share
