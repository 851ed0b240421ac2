import hashlib
import json
import pickle
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from stages.diffusion.folder import single_file_of
from stages.diffusion.header import header_bytes, read_header
from stages.diffusion.model import (
    load_models,
    read_single_file,
    save_diffusers,
    save_single_file,
    write_single_file,
)
from stages.diffusion.single_file import (
    POSITION_IDS,
    normal_keys,
    text_encoder_keys,
    to_original,
    unet_keys,
    vae_keys,
)
from tests.tiny_sd import MAX_LENGTH, TinySD, make_tiny_sd, tiny_sd

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

__all__ = ["tiny_sd"]  # a fixture is found by its name

METADATA = {"modelspec.title": "Tiny, naïve", "modelspec.architecture": "stable-diffusion-v1"}
TEXT = "cond_stage_model.transformer.text_model."


def save(sd: TinySD, path: Path, dtype: torch.dtype = torch.float16) -> Path:
    save_single_file(path, sd.unet, sd.vae, sd.text_encoder, METADATA, dtype)
    return path


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert tensor.dtype == theirs[key].dtype, key
        assert torch.equal(tensor, theirs[key]), key


def sd15_networks() -> tuple["UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel"]:
    """Build networks of SD 1.5's size, on the device in force."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_attention_heads=12,
            num_hidden_layers=12,
            projection_dim=768,
        )
    )
    return unet, vae, text_encoder


def shapes_on_meta() -> dict[str, dict[str, torch.Tensor]]:
    """Build networks of SD 1.5's size without storage, in the original layout."""
    with torch.device("meta"):
        unet, vae, text_encoder = sd15_networks()
    unet_state, vae_state = unet.state_dict(), vae.state_dict()
    text_state = text_encoder.state_dict()
    return {
        "unet": to_original(unet_state, unet_keys(unet_state, unet.config)),
        "vae": to_original(vae_state, vae_keys(vae_state, vae.config)),
        "text_encoder": to_original(text_state, text_encoder_keys(text_state)),
    }


@pytest.mark.parametrize("layers_per_block", [1, 2])
@pytest.mark.parametrize(
    "attention", [(True, False), (False, True), (False, False), (True, True, False)]
)
def test_a_round_trip_is_exact(
    tmp_path: Path, layers_per_block: int, attention: tuple[bool, ...]
) -> None:
    sd = make_tiny_sd(tmp_path / "config", layers_per_block=layers_per_block, attention=attention)
    path = save(sd, tmp_path / "a.safetensors")
    loaded = load_models(path, sd.config)
    for ours, theirs in zip(
        (sd.unet, sd.vae, sd.text_encoder),
        (loaded.unet, loaded.vae, loaded.text_encoder),
        strict=True,
    ):
        assert_same_weights(ours, theirs)
        assert not theirs.training
    input_ids = loaded.tokenizer(
        "a cat", padding="max_length", return_tensors="pt"
    ).input_ids  # (1, MAX_LENGTH)
    assert input_ids.shape == (1, MAX_LENGTH)
    with torch.no_grad():
        assert torch.equal(
            sd.text_encoder(input_ids).last_hidden_state,
            loaded.text_encoder(input_ids).last_hidden_state,
        )


def test_a_diffusers_folder_is_read_as_the_single_file_it_was(tmp_path: Path) -> None:
    sd = make_tiny_sd(tmp_path / "config")
    file, folder = save(sd, tmp_path / "a.safetensors"), tmp_path / "folder"
    save_diffusers(file, sd.config, folder)
    again = single_file_of(folder, tmp_path / "work")
    ours, theirs = (load_models(path, sd.config, dtype=torch.float16) for path in (file, again))
    for part in ("unet", "vae", "text_encoder"):
        assert_same_weights(getattr(ours, part), getattr(theirs, part))
    before = again.stat().st_mtime_ns
    assert single_file_of(folder, tmp_path / "work").stat().st_mtime_ns == before


def test_a_folder_without_safe_weights_is_refused_by_name(tmp_path: Path) -> None:
    sd = make_tiny_sd(tmp_path / "config")
    folder = tmp_path / "folder"
    save_diffusers(save(sd, tmp_path / "a.safetensors"), sd.config, folder)
    for path in (folder / "vae").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match=r"vae: no \.safetensors; pickles are not read"):
        single_file_of(folder, tmp_path / "work")
    with pytest.raises(FileNotFoundError, match=r"neither a \.safetensors file nor a diffusers"):
        single_file_of(tmp_path, tmp_path / "work")


@pytest.mark.parametrize("layers_per_block", [1, 2])
@pytest.mark.parametrize("attention", [(True, False), (False, True), (True, True, False)])
def test_diffusers_opens_our_file_and_draws_the_same_picture(
    tmp_path: Path, layers_per_block: int, attention: tuple[bool, ...]
) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    sd = make_tiny_sd(tmp_path / "config", layers_per_block=layers_per_block, attention=attention)
    path = save(sd, tmp_path / "a.safetensors")
    theirs = StableDiffusionPipeline.from_single_file(
        path, config=str(sd.config), local_files_only=True
    )
    loaded = load_models(path, sd.config)
    assert_same_weights(loaded.unet, theirs.unet)
    assert_same_weights(loaded.vae, theirs.vae)
    assert_same_weights(loaded.text_encoder, theirs.text_encoder)

    ours = StableDiffusionPipeline(
        unet=loaded.unet,
        vae=loaded.vae,
        text_encoder=loaded.text_encoder,
        tokenizer=loaded.tokenizer,
        scheduler=DDIMScheduler.from_config(loaded.noise_scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    a, b = (draw(pipe) for pipe in (ours, theirs))
    assert a.std() > 0
    assert (a == b).all()


def draw(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "a cat", 32, 32, num_inference_steps=2, generator=torch.manual_seed(1), output_type="np"
    ).images


def test_sd15_has_the_keys_of_the_files_in_the_field() -> None:
    parts = shapes_on_meta()
    sizes = {name: (len(t), sum(x.numel() for x in t.values())) for name, t in parts.items()}
    assert sizes == {
        "unet": (686, 859_520_964),
        "vae": (248, 83_653_863),
        "text_encoder": (196, 123_060_480),
    }
    tensors = parts["unet"] | parts["vae"] | parts["text_encoder"]
    unet, vae = "model.diffusion_model.", "first_stage_model."
    for key, shape in {
        unet + "time_embed.0.weight": (1280, 320),
        unet + "input_blocks.0.0.weight": (320, 4, 3, 3),
        unet + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        unet + "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        unet + "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        unet + "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        unet + "input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3),
        unet + "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        unet + "middle_block.2.emb_layers.1.weight": (1280, 1280),
        unet + "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        unet + "output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        unet + "output_blocks.8.2.conv.weight": (640, 640, 3, 3),
        unet + "output_blocks.11.0.in_layers.2.weight": (320, 640, 3, 3),
        unet + "out.2.weight": (4, 320, 3, 3),
        vae + "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
        vae + "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        vae + "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        vae + "decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        vae + "decoder.mid.attn_1.norm.weight": (512,),
        vae + "decoder.up.0.block.2.conv2.weight": (128, 128, 3, 3),
        vae + "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        vae + "quant_conv.weight": (8, 8, 1, 1),
        TEXT + "embeddings.position_embedding.weight": (77, 768),
        TEXT + "encoder.layers.11.mlp.fc2.weight": (768, 3072),
        TEXT + "final_layer_norm.bias": (768,),
    }.items():
        assert tuple(tensors[key].shape) == shape, key


@pytest.fixture(scope="module")
def sd15() -> dict[str, torch.Tensor]:
    """All 1,131 tensors of an SD 1.5 file, without storage."""
    parts = shapes_on_meta()
    position_ids = torch.empty(1, 77, dtype=torch.int64, device="meta")
    return {k: t for part in parts.values() for k, t in part.items()} | {POSITION_IDS: position_ids}


def test_a_full_size_file_is_what_comfyui_detects_as_sd15(sd15: dict[str, torch.Tensor]) -> None:
    """Its rules: detect_unet_config in comfy/model_detection.py, SD15 in supported_models.py."""
    unet = "model.diffusion_model."
    assert len(sd15) == 1131
    keys = {key.removeprefix(unet): t for key, t in sd15.items() if key.startswith(unet)}
    assert len(keys) > 5, "that many keys make the prefix"
    assert "label_emb.0.0.weight" not in keys, "adm_in_channels: None"
    assert tuple(keys["input_blocks.0.0.weight"].shape[:2]) == (320, 4), "model_channels"
    attends = [key for key in keys if key.endswith("transformer_blocks.0.attn2.to_k.weight")]
    assert len(attends) == 16
    assert {keys[key].shape[1] for key in attends} == {768}, "context_dim"
    assert {t.dim() for key, t in keys.items() if key.endswith("proj_in.weight")} == {4}, (
        "no linear"
    )
    blocks = {key.split(".")[1] for key in keys if key.startswith("input_blocks.")}
    assert blocks == {str(i) for i in range(12)}
    text = "cond_stage_model.transformer.text_model.encoder.layers.{}.mlp.fc1.weight"
    assert text.format(11) in sd15, "clip_l: twelve layers"
    assert text.format(12) not in sd15


def test_a_full_size_file_has_the_keys_that_a1111_asks_for(sd15: dict[str, torch.Tensor]) -> None:
    """Its rules: guess_model_config_from_state_dict, and load_vae's and merge's prefixes."""
    sd2 = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    assert sd2 not in sd15, "else it takes SD 2's config"
    assert not any(key.startswith("conditioner.") for key in sd15), "nor SDXL's"
    assert sd15["model.diffusion_model.input_blocks.0.0.weight"].shape[1] == 4, "no inpainting"
    assert tuple(sd15[POSITION_IDS].shape) == (1, 77)
    assert sd15[POSITION_IDS].dtype == torch.int64
    known = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.")
    assert all(key.startswith(known) for key in sd15)
    assert "first_stage_model.decoder.conv_out.weight" in sd15


def test_position_ids_are_written_as_integers(tmp_path: Path, tiny_sd: TinySD) -> None:
    tensors = load_file(save(tiny_sd, tmp_path / "a.safetensors"))
    position_ids = tensors.pop(TEXT + "embeddings.position_ids")
    assert torch.equal(position_ids, torch.arange(MAX_LENGTH)[None])
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_the_same_models_give_the_same_bytes(tmp_path: Path, tiny_sd: TinySD) -> None:
    first = save(tiny_sd, tmp_path / "a.safetensors").read_bytes()
    loaded = load_models(tmp_path / "a.safetensors", tiny_sd.config)
    backwards = dict(reversed(METADATA.items()))
    path = tmp_path / "other" / "b.safetensors"
    save_single_file(path, loaded.unet, loaded.vae, loaded.text_encoder, backwards)
    assert path.read_bytes() == first

    header = read_header(path)
    assert header.metadata == {"format": "pt", **METADATA}
    assert min(entry.start for entry in header.tensors.values()) % 8 == 0
    widths = {"I64": 8, "F16": 2}
    assert all(entry.start % widths[entry.dtype] == 0 for entry in header.tensors.values())


def test_a_header_tells_where_each_tensor_lies(tmp_path: Path, tiny_sd: TinySD) -> None:
    path = save(tiny_sd, tmp_path / "a.safetensors")
    key = "model.diffusion_model.out.2.weight"
    entry = read_header(path).tensors[key]
    stored = path.read_bytes()[entry.start : entry.stop]
    assert stored == load_file(path)[key].numpy().tobytes()


def test_old_alias_and_strangers_are_read_past(tmp_path: Path, tiny_sd: TinySD) -> None:
    tensors = load_file(save(tiny_sd, tmp_path / "a.safetensors"))
    old = {key.replace(".text_model.", "."): tensor for key, tensor in tensors.items()}
    strangers = {
        "betas": torch.zeros(3),
        "alphas_cumprod": torch.zeros(3),
        "model_ema.decay": torch.zeros(1),
        "model_ema.diffusion_modelout2bias": torch.zeros(4),
        "first_stage_model.loss.logvar": torch.zeros(1),
        "cond_stage_model.logit_scale": torch.zeros(1),
    }
    save_file({**old, **strangers}, tmp_path / "old.safetensors")
    read = read_single_file(tmp_path / "old.safetensors")
    assert set(read) == set(tensors) - {TEXT + "embeddings.position_ids"}
    loaded = load_models(tmp_path / "old.safetensors", tiny_sd.config)
    assert_same_weights(loaded.unet, tiny_sd.unet)
    assert_same_weights(loaded.text_encoder, tiny_sd.text_encoder)


def test_the_canonical_spelling_wins_over_the_alias() -> None:
    alias = "cond_stage_model.transformer.final_layer_norm.bias"
    canonical = TEXT + "final_layer_norm.bias"
    assert normal_keys([alias]) == {canonical: alias}
    assert normal_keys([alias, canonical]) == {canonical: canonical}
    assert normal_keys([canonical, alias]) == {canonical: canonical}


def test_text_encoder_keys_with_and_without_the_old_prefix_mean_the_same() -> None:
    new = text_encoder_keys(["final_layer_norm.bias", "embeddings.position_ids"])
    old = text_encoder_keys(["text_model.final_layer_norm.bias"])
    assert list(new.values()) == list(old.values()) == [TEXT + "final_layer_norm.bias"]


def test_weights_are_loaded_in_the_dtype_asked_for(tmp_path: Path, tiny_sd: TinySD) -> None:
    path = save(tiny_sd, tmp_path / "a.safetensors", torch.float32)
    assert read_single_file(path)["model.diffusion_model.out.2.bias"].dtype == torch.float32
    loaded = load_models(path, tiny_sd.config, dtype=torch.bfloat16)
    for part in (loaded.unet, loaded.vae, loaded.text_encoder):
        assert {tensor.dtype for tensor in part.state_dict().values()} == {torch.bfloat16}


def test_loading_draws_no_random_numbers(tmp_path: Path, tiny_sd: TinySD) -> None:
    path = save(tiny_sd, tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    load_models(path, tiny_sd.config)
    assert torch.equal(before, torch.get_rng_state())


def write_legacy_pickle(path: Path) -> None:
    torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: torch.save({"a": torch.zeros(2)}, path), "pickle"),
        (write_legacy_pickle, "pickle"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "pickle"),
        (lambda path: path.write_text("<!DOCTYPE html><p>Log in</p>"), "web page"),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
            "git lfs pull",
        ),
        (lambda path: path.write_bytes(b""), "cut short: 0 bytes"),
        (lambda path: path.write_bytes(bytes(100)), "something unknown"),
        (lambda path: path.write_bytes((9).to_bytes(8, "little") + b'{"a":{}} '), "damaged"),
        (lambda path: path.write_bytes((9).to_bytes(8, "little") + b'{"a'), "cut short"),
    ],
)
def test_what_is_no_safetensors_is_refused(
    tmp_path: Path, write: Callable[[Path], Any], words: str
) -> None:
    path = tmp_path / "model.safetensors"
    write(path)
    with pytest.raises(ValueError, match=words) as refusal:
        read_single_file(path)
    assert str(path) in str(refusal.value)


def test_a_cut_file_is_refused_with_both_sizes(tmp_path: Path, tiny_sd: TinySD) -> None:
    path = save(tiny_sd, tmp_path / "a.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="cut short") as refusal:
        load_models(path, tiny_sd.config)
    assert f"{len(whole):,}" in str(refusal.value)
    assert f"{len(whole) - 10:,}" in str(refusal.value)


def test_a_file_that_goes_on_behind_its_tensors_is_refused(tmp_path: Path) -> None:
    """No program loads what is hidden there."""
    header = '{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}'
    path = header_file(tmp_path / "a.safetensors", header, bytes(5))
    with pytest.raises(ValueError, match=r"damaged: its header promises 66 bytes, it has 67"):
        read_header(path)


def test_a_header_with_holes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    text = json.dumps({"betas": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match="damaged"):
        read_single_file(path)


def header_file(path: Path, header: str, content: bytes = b"") -> Path:
    text = header.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ('{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"a":{}}', "'a' stands in it twice"),
        (
            '{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},'
            '"b":{"dtype":"F16","shape":[2],"data_offsets":[2,4]}}',
            "'b' is said to lie where another",
        ),
        ('{"a":{"dtype":"F16","shape":[2],"data_offsets":[4,0]}}', "'a' is said to lie"),
        ('{"a":{"dtype":"F16","shape":[200],"data_offsets":[0,400]}}', "promises"),
        ('{"a":{"dtype":"F16","shape":[3],"data_offsets":[0,4]}}', "but [3] of F16 take 6"),
        ('{"a":{"dtype":"F17","shape":[2],"data_offsets":[0,4]}}', "the format does not know"),
        ('{"a":{"dtype":"F16","shape":[2]}}', "data_offsets"),
        ('{"a":{"dtype":"F16","shape":[2],"data_offsets":[0]}}', "damaged"),
        ('{"__metadata__":{"a":1}}', "something else than strings"),
        ('{"a":{"dtype":"F16","shape":[-2,-1],"data_offsets":[0,4]}}', "'a' has a dtype, shape"),
        ('{"a":{"dtype":"F16","shape":["x"],"data_offsets":[0,4]}}', "'a' has a dtype, shape"),
        ('{"a":{"dtype":["F16"],"shape":[2],"data_offsets":[0,4]}}', "'a' has a dtype, shape"),
        ('{"a":{"dtype":"F16","shape":[2],"data_offsets":[0.0,4]}}', "'a' has a dtype, shape"),
        ('{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4,4]}}', "'a' has a dtype, shape"),
        ('{"a":{"dtype":"F16","shape":{},"data_offsets":[0,2]}}', "'a' has a dtype, shape"),
        ('{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4],"b":NaN}}', "NaN, which is no JSON"),
        ('{"__metadata__":null}', "__metadata__ is null, not an object of strings"),
        ('{"__metadata__":["a"]}', '__metadata__ is ["a"], not an object of strings'),
        ('{"__metadata__":{"a":"\\ud800"}}', "surrogates not allowed"),
        ('{"\\udfff":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}', "surrogates not allowed"),
        (
            '{"a":{"dtype":"F16","shape":[0,1180591620717411303424],"data_offsets":[0,0]}}',
            "'a' has a shape or place larger",
        ),
        (
            '{"a":{"dtype":"F16","shape":[4294967296,0,4294967296],"data_offsets":[0,0]}}',
            "'a' has a shape or place larger",
        ),
        ("[" * 100_000, "not a safetensors file"),
        ('{"a":' * 100_000, "damaged"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: str, words: str) -> None:
    path = header_file(tmp_path / "a.safetensors", header, bytes(4))
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        read_header(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32-le"])
def test_a_header_that_is_no_utf8_is_refused(tmp_path: Path, encoding: str) -> None:
    text = '{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}'.encode(encoding)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ValueError, match="is damaged"):
        read_header(path)


def test_an_endless_header_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((25_000_001).to_bytes(8, "little") + b"{")
    with pytest.raises(ValueError, match="25,000,001 bytes long; at most 25,000,000 are read"):
        read_header(path)


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_to_a_header_is_read_or_refused_as_such(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2), "b": torch.ones(3)}, path, {"format": "pt"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        header = read_header(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017  some damage is harmless
    else:
        assert all(entry.stop <= len(content) for entry in header.tensors.values())


def test_other_widths_are_refused_with_the_first_key_and_both_shapes(
    tmp_path: Path, tiny_sd: TinySD
) -> None:
    path = save(tiny_sd, tmp_path / "a.safetensors")
    wider = tmp_path / "wider"
    make_tiny_sd(wider, attention=(True, False, False))
    with pytest.raises(ValueError, match="First differing key") as refusal:
        load_models(path, wider)
    # sorted: every key of text encoder and VAE is equal; so are the first two input blocks
    assert "'model.diffusion_model.input_blocks.4.0.op.bias'" in str(refusal.value)
    assert "wanted shape (32,), got no such key" in str(refusal.value)


def rename(tensors: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {key.replace(old, new): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: (
                t | {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(16, 9, 3, 3)}
            ),
            "'model.diffusion_model.input_blocks.0.0.weight', wanted shape (16, 4, 3, 3), "
            "got shape (16, 9, 3, 3). This is an inpainting model.",
        ),
        (
            lambda t: t | {TEXT + "encoder.layers.2.mlp.fc2.bias": torch.ones(32)},
            "'cond_stage_model.transformer.text_model.encoder.layers.2.mlp.fc2.bias', wanted no "
            "such key, got shape (32,). Is the config folder that of this model?",
        ),
        (
            lambda t: rename(t, TEXT, "cond_stage_model.model.transformer."),
            "This is an SD 2.x file.",
        ),
        (lambda t: rename(t, TEXT, "conditioner.embedders.0."), "This is an SDXL file."),
        (lambda t: rename(t, "first_stage_model.", "vae."), "Its autoencoder is missing"),
        (lambda t: rename(t, "model.diffusion_model.", "lora_unet_"), "This is a LoRA"),
    ],
)
def test_another_architecture_is_refused_with_a_hint(
    tmp_path: Path,
    tiny_sd: TinySD,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    words: str,
) -> None:
    tensors = load_file(save(tiny_sd, tmp_path / "a.safetensors"))
    path = tmp_path / "other.safetensors"
    save_file(change(tensors), path)
    with pytest.raises(ValueError, match="not the architecture") as refusal:
        load_models(path, tiny_sd.config)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_linear_projection", True),
        ("down_block_types", ["AttnDownBlock2D", "DownBlock2D"]),
        ("mid_block_type", "UNetMidBlock2D"),
        ("layers_per_block", [1, 2]),
    ],
)
def test_a_unet_that_sd1_has_no_place_for_is_refused(
    tiny_sd: TinySD, setting: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=r"SD 1\.x"):
        unet_keys([], {**tiny_sd.unet.config, setting: value})


def test_a_key_that_sd1_has_no_place_for_is_refused(tiny_sd: TinySD) -> None:
    with pytest.raises(ValueError, match=r"'class_embedding\.weight' has no place"):
        unet_keys(["class_embedding.weight"], tiny_sd.unet.config)


@pytest.mark.parametrize(
    "name", ["vae/config.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"]
)
def test_a_config_folder_in_parts_is_refused(tmp_path: Path, tiny_sd: TinySD, name: str) -> None:
    path = save(tiny_sd, tmp_path / "a.safetensors")
    (tiny_sd.config / name).unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_models(path, tiny_sd.config)


def test_a_tokenizer_of_another_length_is_refused(tmp_path: Path, tiny_sd: TinySD) -> None:
    path = save(tiny_sd, tmp_path / "a.safetensors")
    (tiny_sd.config / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    with pytest.raises(ValueError, match=r"model_max_length is 77, but .* 32"):
        load_models(path, tiny_sd.config)


@pytest.mark.parametrize("value", [float("nan"), 1e5])
def test_a_value_that_float16_cannot_hold_is_not_written(
    tmp_path: Path, tiny_sd: TinySD, value: float
) -> None:
    path = save(tiny_sd, tmp_path / "a.safetensors")
    before = path.read_bytes()
    tiny_sd.unet.conv_out.bias.data[0] = value
    with pytest.raises(ValueError, match=r"model\.diffusion_model\.out\.2\.bias.*not finite"):
        save(tiny_sd, path)
    assert path.read_bytes() == before


def test_metadata_holds_strings_only() -> None:
    with pytest.raises(TypeError, match="epoch"):
        header_bytes({}, {"epoch": 3})  # type: ignore[dict-item]


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_single_file(path, {"a": torch.ones(1000)}, {}, torch.float32)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    program = (
        "import sys, torch; from pathlib import Path\n"
        "from stages.diffusion.model import write_single_file\n"
        "write_single_file(Path(sys.argv[1]), {'a': torch.zeros(10**6)}, {}, torch.float32)\n"
    )

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # bytes

    command = [sys.executable, "-c", program, str(path)]
    run = subprocess.run(
        command, preexec_fn=limit_file_size, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "File too large" in run.stderr
    assert str(path) in run.stderr.splitlines()[-1]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert list(tmp_path.iterdir()) == [path]


def test_reading_and_writing_need_no_diffusers() -> None:
    program = (
        "import sys, stages.diffusion.model\n"
        "sys.exit(bool({'diffusers', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
