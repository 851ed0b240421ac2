"""Stable Diffusion 1.x models in memory, and as one safetensors file in the original layout.

diffusers and transformers take seconds to import, so only functions do it: whoever merely
reads, writes or compares tensors needs torch alone.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from stages.diffusion.dtypes import DTYPE_NAMES
from stages.diffusion.header import header_bytes, read_header
from stages.diffusion.single_file import (
    POSITION_IDS,
    TEXT_ENCODER,
    StateDict,
    check_architecture,
    from_original,
    normal_keys,
    text_encoder_keys,
    to_original,
    unet_keys,
    vae_keys,
)
from stages.diffusion.zero_terminal_snr import rescaled, save_rescaled
from stages.harness.files import replacing
from stages.lineage.ancestry import RECIPE, read_lineage
from stages.lineage.digests import TENSORS_HASH
from stages.lineage.noise_schedule import V_PRED, ZTSNR, zero_terminal_snr

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MODEL_INDEX = "model_index.json"
CONFIG_FILES = (
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "vae/config.json",
)


@dataclass(frozen=True, slots=True)
class Base:
    """Where a model lies."""

    weights: Path  # a safetensors file in the original SD 1.x layout
    config: Path  # the diffusers folder that describes it


@dataclass
class Models:
    """The parts of a Stable Diffusion model; in evaluation mode when just loaded."""

    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL"
    text_encoder: "CLIPTextModel"
    tokenizer: "CLIPTokenizer"
    noise_scheduler: "DDPMScheduler"


def import_networks() -> None:
    """Import what `load_models` needs, for whoever has something else to wait for meanwhile."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401


def load_models(
    weights: Path,
    config: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Models:
    """Load one single file into the models that a config folder describes.

    Args:
        weights: a safetensors file in the original SD 1.x layout.
        config: a diffusers folder: scheduler/, text_encoder/, tokenizer/, unet/ and vae/.
        dtype: of the models' weights, whatever the file's.
        device: where the models are to live.

    Raises:
        FileNotFoundError: if the file or a part of the folder is missing.
        ValueError: if the file is no whole safetensors file, or of another architecture.
    """
    header = read_header(weights)
    models = _empty_models(config)
    parts = _parts(models.unet, models.vae, models.text_encoder)
    wanted = {k: tuple(t.shape) for k, t in _original_tensors(parts).items() if k != POSITION_IDS}
    got = {key: entry.shape for key, entry in header.tensors.items()}
    check_architecture(weights, config, wanted, got)

    tensors = {  # copies: the file stays mapped as long as a view of it lives
        key: tensor.to(device=device, dtype=dtype, copy=True)
        for key, tensor in read_single_file(weights).items()
    }
    for part, keys in parts:
        part.load_state_dict(from_original(tensors, keys), assign=True)
        part.eval()
    _fill_position_ids(models.text_encoder, device)
    if zero_terminal_snr(header.metadata, header.tensors):
        models.noise_scheduler = rescaled(models.noise_scheduler)
    return models


def save_diffusers(weights: Path, config: Path, out: Path) -> None:
    """Write a single file as the folder that diffusers' `from_pretrained` opens, in float16.

    Args:
        weights: a safetensors file in the original SD 1.x layout.
        config: the diffusers folder that describes it.
        out: comes to hold the networks, and a copy of the rest of `config`, its noise schedule
            that which the weights were trained on.
    """
    models = load_models(weights, config, dtype=torch.float16)
    for name in ("scheduler", "tokenizer"):
        shutil.copytree(config / name, out / name, dirs_exist_ok=True)
    shutil.copyfile(config / MODEL_INDEX, out / MODEL_INDEX)
    header = read_header(weights)
    if zero_terminal_snr(header.metadata, header.tensors):
        save_rescaled(out)
    for name in ("unet", "vae", "text_encoder"):
        getattr(models, name).save_pretrained(out / name)


def save_single_file(
    path: Path,
    unet: "UNet2DConditionModel",
    vae: "AutoencoderKL",
    text_encoder: "CLIPTextModel",
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write three models as one safetensors file in the original SD 1.x layout.

    Args:
        path: an older file there stays whole until the new one is.
        unet, vae, text_encoder: on any device, in any float dtype.
        metadata: modelspec.* and the like; see `write_single_file`.
        dtype: of the weights in the file.

    Raises:
        ValueError: if the layout has no place for a tensor, or a value is not finite in `dtype`.
        OSError: if the file cannot be written, as when the disk is full.
    """
    tensors = _original_tensors(_parts(unet, vae, text_encoder))
    write_single_file(path, tensors, metadata, dtype)


def save_trained(
    path: Path, base: Path, models: Models, trained: Iterable[str], metadata: Mapping[str, str]
) -> None:
    """Write a base of which some networks were trained, as one float16 file; see above.

    Args:
        path: an older file there stays whole until the new one is.
        base: gives the tensors of the other networks, which `models` need not hold any more.
        models: in any dtype, on any device.
        trained: names of networks in `models`.
        metadata: see `write_single_file`.
    """
    names = ("unet", "vae", "text_encoder")
    parts = dict(zip(names, _parts(models.unet, models.vae, models.text_encoder), strict=True))
    tensors = read_single_file(base)
    for name in trained:
        network, keys = parts[name]
        tensors |= to_original(network.state_dict(), keys)
    is_marked = {ZTSNR: zero_terminal_snr(metadata)}
    is_marked[V_PRED] = is_marked[ZTSNR] or read_lineage(metadata).predicts_v
    markers = {key: torch.empty(0) for key, is_so in is_marked.items() if is_so}
    tensors |= _position_ids(tensors) | markers
    write_single_file(path, tensors, metadata, torch.float16)


def read_single_file(path: Path) -> StateDict:
    """Read the weights of the three networks, by normal key, in the file's dtypes.

    EMA copies, scheduler buffers, markers and `position_ids` are left out. The tensors are views
    of the mapped file: copy those that are to outlive it or to be changed.

    Raises:
        ValueError: if it is no whole safetensors file.
    """
    keys = normal_keys(read_header(path).tensors)
    try:
        with safe_open(path, framework="pt") as file:
            return {normal: file.get_tensor(key) for normal, key in keys.items()}
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error}). Fetch or make it again.") from error


def write_single_file(
    path: Path, tensors: StateDict, metadata: Mapping[str, str], dtype: torch.dtype
) -> None:
    """Write tensors so that the file is whole or absent, and the same inputs give the same bytes.

    A file that tells what it was made of also names the hash of its tensors: it is no copy of that.

    Args:
        path: an older file there stays whole until the new one is.
        tensors: floating-point ones are written as `dtype`, others as they are.
        metadata: without clock, path or machine, or the bytes would tell them.
        dtype: float32, float16 or bfloat16.

    Raises:
        ValueError: if a value is not finite in `dtype`; the message names the tensor.
        OSError: if the file cannot be written, as when the disk is full.
    """
    stored = {k: dtype if t.is_floating_point() else t.dtype for k, t in tensors.items()}
    # Wide elements first, as the library does: every tensor starts at a multiple of its width.
    order = sorted(tensors, key=lambda key: (-stored[key].itemsize, key))
    shapes = {key: (DTYPE_NAMES[stored[key]], tuple(tensors[key].shape)) for key in order}
    hashed = sha256() if RECIPE in metadata else None

    def start() -> bytes:
        own = {TENSORS_HASH: f"0x{hashed.hexdigest()}"} if hashed else {}
        return header_bytes(shapes, {**metadata, **own})

    try:
        with replacing(path) as scratch, scratch.open("wb") as file:
            file.write(start())
            for key in order:
                content = _tensor_bytes(tensors[key], stored[key], f"{path}: {key!r}")
                file.write(content)
                if hashed:
                    hashed.update(content)
            file.seek(0)
            file.write(start())  # as long as before
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror} (writing weights; an older file of this name is as it was)",
            str(path),
        ) from error


def _tensor_bytes(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> memoryview:
    """Give a tensor's elements as the file stores them."""
    stored = tensor.detach().to("cpu", dtype).contiguous()
    # the extremes are NaN if any value is, and far quicker than isfinite of each
    if stored.numel() and not all(extreme.isfinite() for extreme in stored.aminmax()):
        raise ValueError(
            f"{name} holds values that are not finite in {dtype}. Did the training diverge? "
            "Lower its learning rate; if the values are only too large for float16, write float32."
        )
    return stored.flatten().view(torch.uint8).numpy().data


def _parts(
    unet: "UNet2DConditionModel", vae: "AutoencoderKL", text_encoder: "CLIPTextModel"
) -> list[tuple[nn.Module, dict[str, str]]]:
    """Pair each network with the original names of its keys."""
    return [
        (unet, unet_keys(unet.state_dict(), unet.config)),
        (vae, vae_keys(vae.state_dict(), vae.config)),
        (text_encoder, text_encoder_keys(text_encoder.state_dict())),
    ]


def _original_tensors(parts: list[tuple[nn.Module, dict[str, str]]]) -> StateDict:
    """Give all tensors of a single file, still in the models' dtypes and on their devices."""
    tensors: StateDict = {}
    for part, keys in parts:
        tensors |= to_original(part.state_dict(), keys)
    return tensors | _position_ids(tensors)


def _position_ids(tensors: StateDict) -> StateDict:
    """Give the one tensor of a single file that is no weight: (1, length)."""
    length = len(tensors[TEXT_ENCODER + "embeddings.position_embedding.weight"])
    return {POSITION_IDS: torch.arange(length)[None]}


def _empty_models(config: Path) -> Models:
    """Build the models that a config folder describes, their weights without storage."""
    _check_config(config)
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    def read(folder: str, name: str = "config.json") -> dict[str, Any]:
        values: dict[str, Any] = json.loads((config / folder / name).read_text(encoding="utf-8"))
        return values

    tokenizer = CLIPTokenizer.from_pretrained(config / "tokenizer", local_files_only=True)
    text_config = CLIPTextConfig.from_pretrained(config / "text_encoder", local_files_only=True)
    _check_tokenizer(config, tokenizer, text_config)
    noise_scheduler = DDPMScheduler.from_config(read("scheduler", "scheduler_config.json"))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read("unet"))
        vae = AutoencoderKL.from_config(read("vae"))
        text_encoder = CLIPTextModel(text_config)
    return Models(unet, vae, text_encoder, tokenizer, noise_scheduler)


def _check_config(config: Path) -> None:
    missing = [name for name in CONFIG_FILES if not (config / name).is_file()]
    if not any(
        all((config / "tokenizer" / name).is_file() for name in names)
        for names in (("tokenizer.json",), ("vocab.json", "merges.txt"))
    ):
        missing.append("tokenizer/tokenizer.json (or vocab.json and merges.txt)")
    if missing:
        raise FileNotFoundError(
            f"{config}: not a whole diffusers config folder: {missing[0]} is missing"
        )


def _check_tokenizer(
    config: Path, tokenizer: "CLIPTokenizer", text_config: "CLIPTextConfig"
) -> None:
    """Refuse a tokenizer whose output the text encoder has no positions or embeddings for."""
    length, positions = tokenizer.model_max_length, text_config.max_position_embeddings
    if length != positions:
        raise ValueError(
            f"{config}/tokenizer/tokenizer_config.json: model_max_length is {length}, but "
            f"text_encoder/config.json has max_position_embeddings {positions}; make them equal"
        )
    if len(tokenizer) > text_config.vocab_size:
        raise ValueError(
            f"{config}/tokenizer: {len(tokenizer)} tokens, but text_encoder/config.json has "
            f"vocab_size {text_config.vocab_size}; do both come from one model?"
        )


def _fill_position_ids(text_encoder: nn.Module, device: torch.device | str) -> None:
    """Give the one buffer that no state dict holds its values: 0, 1, 2 ..."""
    for name, buffer in list(text_encoder.named_buffers()):
        module, _, attribute = name.rpartition(".")
        if attribute != "position_ids":
            raise NotImplementedError(f"buffer {name!r} is in no state dict; give it its values")
        position_ids = torch.arange(buffer.shape[-1], device=device)[None]  # (1, length)
        setattr(text_encoder.get_submodule(module), attribute, position_ids)
