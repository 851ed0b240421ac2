"""Noise schedules that end in pure noise: in memory, and for diffusers.

Source: "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv 2305.08891.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

# Section 3.3: a sampler has to begin at the last timestep, which "leading" leaves out; 3.1: what
# is pure noise tells nothing of the noise that was added, so that only v can be predicted there.
SCHEDULE = {
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}


def rescaled(noise_scheduler: DDPMScheduler) -> DDPMScheduler:
    """Give the noise schedule that ends in pure noise; samplers that are made of its config too."""
    return type(noise_scheduler).from_config(noise_scheduler.config, **SCHEDULE)


def save_rescaled(folder: Path) -> None:
    """Let a diffusers folder draw on such a schedule, with v-prediction as it was trained.

    Its sampler becomes DDIM: not every one can do it, PNDM of SD 1.5's own folder least of all.

    Args:
        folder: with model_index.json and scheduler/.
    """
    from diffusers import DDIMScheduler

    def read(path: Path) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return values

    config = read(folder / "scheduler/scheduler_config.json")
    scheduler = DDIMScheduler.from_config(config, **SCHEDULE, clip_sample=False)
    scheduler.save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    values = {**read(index), "scheduler": ["diffusers", "DDIMScheduler"]}
    index.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
