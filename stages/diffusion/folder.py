"""Models as diffusers keeps them, in a folder: read once, and used as single files."""

from pathlib import Path

import torch

from stages.diffusion.model import MODEL_INDEX, save_single_file
from stages.harness.files import sha256_folder
from stages.harness.scratch import exclusive


def single_file_of(folder: Path, work: Path) -> Path:
    """Write the networks of a diffusers folder as a single file, or find it written.

    Args:
        folder: as `save_pretrained` of an SD 1.x pipeline leaves it, with safetensors.
        work: comes to hold the file, named by the folder's content; float32, so nothing is lost.

    Raises:
        FileNotFoundError: if the folder lacks a network, or has its weights as pickles alone.
        ValueError: if a network is not one of SD 1.x.
    """
    if not (folder / MODEL_INDEX).is_file():
        raise FileNotFoundError(
            f"{folder}: neither a .safetensors file nor a diffusers folder, which has a "
            f"{MODEL_INDEX}"
        )
    path = work / f"{sha256_folder(folder)[:16]}.safetensors"
    with exclusive(work / path.stem, wait=True):
        if not path.is_file():
            _write(folder, path)
    return path


def _write(folder: Path, path: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    networks = {}
    for name, kind in kinds.items():
        if not any((folder / name).glob("*.safetensors")):
            raise FileNotFoundError(f"{folder / name}: no .safetensors; pickles are not read")
        networks[name] = kind.from_pretrained(
            folder / name, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
        )
    save_single_file(path, **networks, metadata={}, dtype=torch.float32)
