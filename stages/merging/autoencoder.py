"""An autoencoder alone, as people bake one in: its tensors under a whole checkpoint's keys."""

import re
from collections.abc import Iterable
from dataclasses import replace

from stages.diffusion.single_file import VAE, VAE_ATTENTION_WEIGHT, vae_keys
from stages.merging.source import Source

BARE = re.compile(r"(encoder|decoder|quant_conv|post_quant_conv)\.")
BESIDES = re.compile(r"(loss|model_ema)\.")  # what its training left in it
# a layer in the diffusers layout; the decoder has one more in each block than the encoder
DIFFUSERS_LAYER = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.resnets\.(\d+)\.")
ATTENTION = re.compile(r"(?<=\.mid_block\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)")
ATTENTION_NOW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def with_bare_autoencoder(source: Source) -> Source:
    """Give the tensors of a file that is an autoencoder alone the keys of a whole checkpoint's.

    The diffusers layout is known too, its attention with the names of before 0.12 as well: there
    the matrices of the attention are what the original layout calls convolutions of 1 x 1.

    Raises:
        ValueError: naming the file and a key that has no place in an autoencoder.
    """
    own = {key: entry for key, entry in source.tensors.items() if not BESIDES.match(key)}
    if not all(map(BARE.match, own)):
        return source
    try:
        keys = _original_keys(own)
    except ValueError as error:
        raise ValueError(
            f"{source.path}: seems an autoencoder in the diffusers layout, but {error}"
        ) from error
    tensors = {}
    for key, normal in keys.items():
        entry = own[key]
        if VAE_ATTENTION_WEIGHT.fullmatch(normal) and len(entry.shape) == 2:
            entry = replace(entry, shape=(*entry.shape, 1, 1))
        tensors[normal] = entry
    return replace(source, tensors=dict(sorted(tensors.items())))


def _original_keys(keys: Iterable[str]) -> dict[str, str]:
    """Give the original key of a whole checkpoint for each key as written."""
    layers = [found for key in keys if (found := DIFFUSERS_LAYER.match(key))]
    if not layers:
        return {key: VAE + key for key in keys}
    config = {
        "block_out_channels": [0] * (1 + max(int(layer[2]) for layer in layers)),
        "layers_per_block": max(int(layer[3]) + layer[1].startswith("encoder") for layer in layers),
    }
    now = {ATTENTION.sub(lambda found: ATTENTION_NOW[found[0]], key): key for key in keys}
    return {now[key]: original for key, original in vae_keys(now, config).items()}
