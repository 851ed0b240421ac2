"""LAION's aesthetic predictor: how much people like a picture, whatever it shows, about 1 to 10.

Source: C. Schuhmann, improved-aesthetic-predictor (2022): a perceptron without activations over
    the normalized image embedding of CLIP ViT-L/14. Its file is a pickle; convert it to safetensors
    where you trust it.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

WIDTHS = (1024, 128, 64, 16, 1)
LAYERS = (0, 2, 4, 6, 7)  # their places in the file; dropout stood between
NEXT_STEP = "Wanted: sac+logos+ava1-l14-linearMSE as safetensors, keys layers.0.weight and so on"


class AestheticHead:
    """The perceptron."""

    def __init__(self, path: Path, embedding_width: int) -> None:
        """Load it.

        Args:
            path: a safetensors file.
            embedding_width: of the CLIP that it is to judge by.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is another network, or of another CLIP.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such weights of an aesthetic head. {NEXT_STEP}")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file ({error}). {NEXT_STEP}") from None
        widths = (embedding_width, *WIDTHS)
        modules = []
        for place, wide, narrow in zip(LAYERS, widths[:-1], widths[1:], strict=True):
            layer = nn.Linear(wide, narrow)
            for name, parameter in layer.named_parameters():
                key = f"layers.{place}.{name}"
                found = tensors.get(key)
                if found is None or found.shape != parameter.shape:
                    got = "is missing" if found is None else f"has shape {tuple(found.shape)}"
                    raise ValueError(
                        f"{path}: {key!r} {got}, wanted {tuple(parameter.shape)}: not an aesthetic "
                        f"head, or not of this CLIP (width {embedding_width}). {NEXT_STEP}"
                    )
                parameter.data.copy_(found)
            modules.append(layer)
        self.layers = nn.Sequential(*modules).eval().requires_grad_(False)

    def score(self, embedding: Tensor) -> float:
        """Score a picture by its embedding, (1, D) of length 1."""
        with torch.inference_mode():
            return float(self.layers(embedding.float().cpu()).item())
