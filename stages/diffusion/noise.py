"""Random draws by key: whoever asks for the same key gets the same values, whenever and wherever.

A key is made of words and numbers, such as (seed, "train", example id, epoch). Nothing is left
over between draws, so that no batch size, order, worker, device or restart changes a value.
Philox takes a key of 128 bits as it is and gives the same stream on every platform; torch's own
CPU generator would keep 32 bits of it.

Source: "Parallel random numbers: as easy as 1, 2, 3", SC 2011, doi 10.1145/2063384.2063405.
"""

import hashlib
import json

import numpy as np
import torch
from torch import Tensor

Key = int | str


def generator(*key: Key) -> np.random.Generator:
    """Give the stream of random numbers that belongs to a key."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16])))


def draw_uniform(*key: Key) -> float:
    """Draw a number in [0, 1)."""
    return float(generator(*key, "uniform").random())


def draw_normal(shape: tuple[int, ...], *key: Key) -> Tensor:
    """Draw a float32 tensor of independent standard normal values, on the CPU."""
    values = generator(*key, "normal").standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(values)


def draw_noise(shape: tuple[int, ...], offset: float, *key: Key) -> Tensor:
    """Draw the noise of one picture, its mean moved per channel by `offset` times a normal value.

    Args:
        shape: (4, h, w).
        offset: 0 for plain noise; about 0.1 lets a model learn dark and bright pictures.

    Source: N. Guttenberg, "Diffusion with Offset Noise", crosslabs.org, 2023.
    """
    noise = draw_normal(shape, *key)
    if offset:
        noise += offset * draw_normal((shape[0], 1, 1), *key, "offset")
    return noise
