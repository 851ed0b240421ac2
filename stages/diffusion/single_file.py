"""The original Stable Diffusion 1.x layout: where each tensor of the diffusers models stands in it.

Names are derived from the diffusers configs, so that a model of any number of blocks and layers
has its place. The layout is that of CompVis's modules: https://github.com/CompVis/stable-diffusion
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from stages.lineage.noise_schedule import MARKERS

if TYPE_CHECKING:  # torch takes a second to import; names need none
    from torch import Tensor

StateDict: TypeAlias = "dict[str, Tensor]"
Shapes = Mapping[str, tuple[int, ...]]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT_ENCODER = "cond_stage_model.transformer.text_model."
POSITION_IDS = TEXT_ENCODER + "embeddings.position_ids"

EMA = "model_ema.diffusion_model"  # then the UNet's key without its dots
EMA_WORDS = re.compile(
    r"(?P<block>input_blocks|output_blocks)(?P<number>\d{1,2})(?P<layer>\d)"
    r"|(?P<word>diffusion_model|middle_block|time_embed|transformer_blocks|skip_connection"
    r"|in_layers|emb_layers|out_layers|attn[12]|to_out|to_[qkv]|proj_in|proj_out|proj|norm[123]"
    r"|norm|net|ff|conv|op|out|weight|bias|\d)"
)

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
HAS_ATTENTION = {
    "CrossAttnDownBlock2D": True,
    "DownBlock2D": False,
    "CrossAttnUpBlock2D": True,
    "UpBlock2D": False,
}

VAE_ATTENTION_WEIGHT = re.compile(
    re.escape(VAE) + r"(encoder|decoder)\.mid\.attn_1\.(q|k|v|proj_out)\.weight"
)
TEXT_ENCODER_ALIAS = re.compile(
    r"^cond_stage_model\.transformer\.(?=(embeddings|encoder|final_layer_norm)\.)"
)
# Files of the field hold these too. They are no weights of the three networks: `position_ids`
# follow from the length, the rest is the autoencoder's training or CLIP's other half. That of SD
# 2.x, under `cond_stage_model.model.`, is part of its text encoder as it is published, and stays.
NOT_WEIGHTS = re.compile(
    re.escape(POSITION_IDS)
    + r"|model_ema\..*|first_stage_model\.(loss|model_ema)\..*"
    + r"|cond_stage_model\.(transformer\.)?(logit_scale|text_projection(\.weight)?)"
    + r"|betas|lvlb_weights|posterior_\w+|(log_|sqrt_)?(one_minus_)?alphas_cumprod(_prev)?"
    + r"|sqrt_recip(m1)?_alphas_cumprod"
    + f"|{'|'.join(MARKERS)}"
)
OTHER_FILES = {
    "conditioner.embedders.": "This is an SDXL file.",
    "cond_stage_model.model.": "This is an SD 2.x file.",
    "model.diffusion_model.joint_blocks.": "This is an SD 3 file.",
    "model.diffusion_model.double_blocks.": "This is a Flux file.",
    "double_blocks.": "This is a Flux file.",
    "lora_": "This is a LoRA, which holds differences, not a whole checkpoint.",
    "control_model.": "This is a ControlNet.",
    "down_blocks.": "This is a UNet in the diffusers layout; the original single file is wanted.",
    "decoder.": "This is an autoencoder alone; the whole checkpoint is wanted.",
    "text_model.": "This is a text encoder alone; the whole checkpoint is wanted.",
}


def unet_keys(keys: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Map a UNet2DConditionModel's keys to the original ones, in sorted order.

    Args:
        keys: of its state dict.
        config: its `config`, with all defaults.

    Raises:
        ValueError: if SD 1.x has no place for a setting, a block type or a key.
    """
    names = _unet_names(config)
    return {key: UNET + _renamed(key, names) for key in sorted(keys)}


def vae_keys(keys: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Map an AutoencoderKL's keys to the original ones, in sorted order; as `unet_keys`."""
    names = _vae_names(config)
    return {key: VAE + _renamed(key, names) for key in sorted(keys)}


def text_encoder_keys(keys: Iterable[str]) -> dict[str, str]:
    """Map a CLIPTextModel's keys to the original ones, in sorted order.

    transformers dropped the prefix `text_model.` in 5.6; keys with and without it are known.
    """
    weights = sorted(key for key in keys if not key.endswith(".position_ids"))
    return {key: TEXT_ENCODER + key.removeprefix("text_model.") for key in weights}


def to_original(state: StateDict, keys: Mapping[str, str]) -> StateDict:
    """Rename tensors to the original layout, where the VAE's attention is made of 1x1 convs."""
    tensors = {original: state[key] for key, original in keys.items()}
    attention = {key: tensors[key] for key in tensors if VAE_ATTENTION_WEIGHT.fullmatch(key)}
    return tensors | {key: weight[:, :, None, None] for key, weight in attention.items()}


def from_original(tensors: StateDict, keys: Mapping[str, str]) -> StateDict:
    """Undo `to_original`: take the tensors that `keys` names, under their diffusers keys."""
    return {
        key: tensors[k].flatten(1) if VAE_ATTENTION_WEIGHT.fullmatch(k) else tensors[k]
        for key, k in keys.items()
    }


def is_stable_diffusion(keys: Iterable[str]) -> bool:
    """Tell a file of the original layout, its UNet's weights perhaps as averages alone."""
    return any(key.startswith((UNET, EMA)) for key in keys)


def normal_keys(keys: Iterable[str]) -> dict[str, str]:
    """Find the weights of the networks in a file: normal key to the key as it is written.

    The old alias of the text encoder gets its `text_model.`; where both stand, the alias loses.
    EMA copies of the UNet count where there is nothing else of it. Scheduler buffers, losses,
    `position_ids` and CLIP's other half are left out; what other architectures have besides, such
    as SDXL's `conditioner.` and SD 2.x's `text_projection`, stays.
    """
    spelled = {TEXT_ENCODER_ALIAS.sub(TEXT_ENCODER, key): key for key in sorted(keys)}
    if not any(key.startswith(UNET) for key in spelled):
        averages = [key for key in spelled if key.startswith(EMA)]
        spelled |= {"model." + _with_dots(key.removeprefix("model_ema.")): key for key in averages}
    return {
        normal: key for normal, key in sorted(spelled.items()) if not NOT_WEIGHTS.fullmatch(normal)
    }


def other_file(keys: Iterable[str]) -> str | None:
    """Say what kind of file this is, if it is one that people take for an SD 1.x checkpoint."""
    keys = list(keys)
    for start, words in OTHER_FILES.items():
        if any(key.startswith(start) for key in keys):
            return words
    return None


def check_architecture(path: Path, config: Path, wanted: Shapes, got: Shapes) -> None:
    """Refuse a file whose weights have other keys or shapes than the config folder's networks.

    Args:
        path: of the file, for the message.
        config: of the folder, for the message.
        wanted: shapes by key of the original layout.
        got: shapes by key as written, all of the file's.

    Raises:
        ValueError: naming the first differing key, in sorted order, and both shapes.
    """
    ours = (UNET, VAE, "cond_stage_model.")
    found = {n: got[key] for n, key in normal_keys(got).items() if n.startswith(ours)}
    differing = (k for k in sorted({*wanted, *found}) if wanted.get(k) != found.get(k))
    if key := next(differing, None):
        raise ValueError(
            f"{path}: not the architecture that {config} describes ({len(wanted)} tensors). "
            f"First differing key: {key!r}, wanted {_shape(wanted, key)}, "
            f"got {_shape(found, key)}. {_hint(wanted, got)}"
        )


def _with_dots(name: str) -> str:
    """Put the dots back that CompVis's LitEma takes out of a key's name; else the name as it is."""
    parts: list[str] = []
    end = 0
    for found in EMA_WORDS.finditer(name):
        if found.start() != end:
            return name
        groups = ("block", "number", "layer") if found["block"] else ("word",)
        parts += [found[group] for group in groups]
        end = found.end()
    return ".".join(parts) if end == len(name) else name


def _shape(shapes: Shapes, key: str) -> str:
    return f"shape {tuple(shapes[key])}" if key in shapes else "no such key"


def _hint(wanted: Shapes, got: Shapes) -> str:
    """Say what kind of file this may be, and what to do."""
    if words := other_file(got):
        return words
    conv_in = UNET + "input_blocks.0.0.weight"
    if conv_in not in got:
        return "Its UNet is missing; a whole SD 1.x checkpoint is wanted."
    if got[conv_in][1:2] == (9,) and wanted[conv_in][1] == 4:
        return "This is an inpainting model."
    for prefix, part in ((VAE, "autoencoder"), ("cond_stage_model.", "text encoder")):
        if not any(key.startswith(prefix) for key in got):
            return f"Its {part} is missing; a whole SD 1.x checkpoint is wanted."
    return "Is the config folder that of this model?"


def _unet_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Map module names of diffusers to original ones, where layers of all blocks are counted on."""
    _check_unet(config)
    layers: int = config["layers_per_block"]
    names = dict(UNET_ENDS)
    names |= _inside("mid_block.resnets.0", "middle_block.0", UNET_RESNET)
    names |= {"mid_block.attentions.0": "middle_block.1"}
    names |= _inside("mid_block.resnets.1", "middle_block.2", UNET_RESNET)
    for i in range(len(config["down_block_types"])):
        first = i * (layers + 1) + 1  # conv_in is number 0
        for j in range(layers):
            place = f"input_blocks.{first + j}"
            names |= _inside(f"down_blocks.{i}.resnets.{j}", f"{place}.0", UNET_RESNET)
            names |= {f"down_blocks.{i}.attentions.{j}": f"{place}.1"}
        names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{first + layers}.0.op"
    for i, kind in enumerate(config["up_block_types"]):
        first = i * (layers + 1)
        for j in range(layers + 1):
            place = f"output_blocks.{first + j}"
            names |= _inside(f"up_blocks.{i}.resnets.{j}", f"{place}.0", UNET_RESNET)
            names |= {f"up_blocks.{i}.attentions.{j}": f"{place}.1"}
        after = 2 if HAS_ATTENTION[kind] else 1  # it follows what the last layer consists of
        names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{first + layers}.{after}.conv"
    return names


def _check_unet(config: Mapping[str, Any]) -> None:
    """Refuse settings under which SD 1.x programs would misread the file."""
    for kind in (*config["down_block_types"], *config["up_block_types"]):
        if kind not in HAS_ATTENTION:
            raise ValueError(
                f"unet: block type {kind!r} is not of SD 1.x ({', '.join(HAS_ATTENTION)})"
            )
    wanted = {"mid_block_type": "UNetMidBlock2DCrossAttn", "use_linear_projection": False}
    for name, value in wanted.items():
        if config[name] != value:
            raise ValueError(f"unet: {name} is {config[name]!r}; SD 1.x has {value!r}")
    if not isinstance(config["layers_per_block"], int):
        raise ValueError(
            f"unet: layers_per_block is {config['layers_per_block']!r}; SD 1.x has one number"
        )


def _vae_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Map module names of diffusers to original ones; the decoder counts its blocks backwards."""
    layers: int = config["layers_per_block"]
    blocks = len(config["block_out_channels"])
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        names |= {f"{half}.conv_in": f"{half}.conv_in", f"{half}.conv_out": f"{half}.conv_out"}
        names |= {f"{half}.conv_norm_out": f"{half}.norm_out"}
        names |= _inside(f"{half}.mid_block.resnets.0", f"{half}.mid.block_1", VAE_RESNET)
        names |= _inside(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", VAE_ATTENTION)
        names |= _inside(f"{half}.mid_block.resnets.1", f"{half}.mid.block_2", VAE_RESNET)
    for i in range(blocks):
        down, ours = f"encoder.down.{i}", f"encoder.down_blocks.{i}"
        for j in range(layers):
            names |= _inside(f"{ours}.resnets.{j}", f"{down}.block.{j}", VAE_RESNET)
        names[f"{ours}.downsamplers.0.conv"] = f"{down}.downsample.conv"
        up, ours = f"decoder.up.{blocks - 1 - i}", f"decoder.up_blocks.{i}"
        for j in range(layers + 1):
            names |= _inside(f"{ours}.resnets.{j}", f"{up}.block.{j}", VAE_RESNET)
        names[f"{ours}.upsamplers.0.conv"] = f"{up}.upsample.conv"
    return names


def _inside(module: str, place: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{module}.{ours}": f"{place}.{original}" for ours, original in parts.items()}


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """Replace the module name that `key` begins with; what follows it stays."""
    module, rest = key, ""
    while module not in names:
        module, dot, part = module.rpartition(".")
        if not dot:
            raise ValueError(f"{key!r} has no place in the SD 1.x layout; is it of another model?")
        rest = f".{part}{rest}"
    return names[module] + rest
