"""Whether a model was trained until nothing but noise was left, and is to be drawn from there."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.diffusion.header import read_header
from stages.lineage.in_file import lineage_of

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

STATED = "cosmopolitan.zero_terminal_snr"  # in a file's metadata: "true" or "false"
MARK = "ztsnr"  # a tensor by which ComfyUI and A1111 know such files


def is_zero_terminal(weights: Path) -> bool:
    """Tell whether a file's training ended its noise schedule in pure noise (arXiv 2305.08891).

    Its metadata may say so, or a tensor of other programs; else its lineage: the last training, or
    any of those that were merged.

    Raises:
        ValueError: if it is no whole safetensors file, or what it says of its making is damaged.
    """
    header = read_header(weights)
    if STATED in header.metadata:
        return header.metadata[STATED] == "true"
    if MARK in header.tensors:
        return True
    lineage = lineage_of(weights, header.metadata)
    waiting: list[str | None] = [None]  # the file itself
    for source in waiting:
        recipe = lineage.recipe if source is None else lineage.ancestors[source].recipe
        if recipe and recipe.get("kind") == "train":
            if _says_so(recipe.get("params")):
                return True
        else:
            waiting += [each for each in lineage.inputs(source).values() if each not in waiting]
    return False


def _says_so(params: Any) -> bool:
    return isinstance(params, dict) and params.get("zero_terminal_snr") is True


def schedule_of(weights: Path, described: "DDPMScheduler") -> "DDPMScheduler":
    """Give the noise schedule that a file was trained on.

    Args:
        weights: a safetensors file.
        described: the schedule that its config folder describes.
    """
    if not is_zero_terminal(weights):
        return described
    return type(described).from_config(described.config, rescale_betas_zero_snr=True)
