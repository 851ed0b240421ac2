"""One model at a time, ready to draw, each in the memory and with the compiled code of the last."""

from collections.abc import Mapping
from pathlib import Path

import torch

from stages.diffusion.model import Models, load_models
from stages.diffusion.render import open_models
from stages.diffusion.stored_code import StoredCode
from stages.diffusion.torch_settings import keep_code_of_all_sizes

COMPILER = "inductor"


class Easel:
    """Holds one model at a time, and draws the next with the same memory and compiled code."""

    def __init__(
        self,
        config: Path,
        dtype: str,
        *,
        compiled: bool,
        tile_px: int,
        cache: Path,
        backend: str = COMPILER,
        options: Mapping[str, bool] | None = None,
    ) -> None:
        """Remember how to draw; the first model is loaded by `put`.

        Args:
            config: the diffusers folder that describes the models.
            dtype: see `open_models`.
            compiled: whether torch.compile makes the UNet and the decoder faster. It takes
                minutes for each size of picture, once for each GPU of a machine.
            tile_px: side of the tiles in which pictures are decoded; 0 decodes them whole.
            cache: where compiled code is stored.
            backend, options: of torch.compile.
        """
        self.backend, self.options, self.cache = backend, dict(options or {}), cache
        self.config, self.dtype, self.compiled, self.tile_px = config, dtype, compiled, tile_px
        self._models: Models | None = None
        if compiled:
            keep_code_of_all_sizes()

    def put(self, weights: Path) -> Models:
        """Load a model in the place of the last one.

        The networks stay where they are, so that code compiled for them holds; only their values
        change.
        """
        if self._models is None:
            self._models = open_models(weights, self.config, self.dtype)
            self._prepare(self._models)
            return self._models
        new = load_models(weights, self.config, dtype=getattr(torch, self.dtype))
        for name in ("unet", "vae", "text_encoder"):
            values = getattr(new, name).state_dict()
            for key, tensor in getattr(self._models, name).state_dict().items():
                tensor.copy_(values[key])
        self._models.noise_scheduler = new.noise_scheduler
        return self._models

    def _prepare(self, models: Models) -> None:
        if self.tile_px:
            factor = 2 ** (len(models.vae.config.block_out_channels) - 1)
            models.vae.enable_tiling()
            models.vae.tile_sample_min_size = self.tile_px
            models.vae.tile_latent_min_size = self.tile_px // factor
        if self.compiled:
            for part, config in (
                (models.unet, models.unet.config),
                (models.vae.decoder, models.vae.config),
            ):
                part.forward = StoredCode(
                    part, config, self.cache / "stored", self.backend, self.options
                )
