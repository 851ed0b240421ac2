"""Which noise schedule a model learnt on, as the metadata of its file tell it."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

ZERO_TERMINAL_SNR = "cosmopolitan.zero_terminal_snr"
# Empty tensors by which A1111, Forge and, for its larger models, ComfyUI know such a model; no
# program reads our metadata.
ZTSNR = "ztsnr"
MARKERS = ("v_pred", ZTSNR)


def zero_terminal_snr(metadata: Mapping[str, str], keys: Collection[str] = ()) -> bool:
    """Tell whether a model learnt that the last timestep is pure noise, and must draw from there.

    Args:
        metadata: of its file.
        keys: of its tensors, where another program may have marked it.

    Source: "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv 2305.08891.
    """
    return metadata.get(ZERO_TERMINAL_SNR) == "true" or ZTSNR in keys


def noise_schedule(
    recipe: Mapping[str, Any], parents: Iterable[Mapping[str, str]]
) -> dict[str, str]:
    """Write what a new file says of it: what its training says, or a merge's inputs, any of them.

    Args:
        recipe: of the file.
        parents: metadata of the files that it is made of.
    """
    params = recipe.get("params", {})
    learnt = params.get("zero_terminal_snr", any(map(zero_terminal_snr, parents)))
    return {ZERO_TERMINAL_SNR: "true"} if learnt else {}
