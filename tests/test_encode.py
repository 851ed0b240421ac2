"""Encoding: each example by itself, once, whatever is killed in between."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from stages.diffusion.model import load_models
from stages.harness.files import sha256_file
from stages.images.bucket import Bucket
from stages.training import encode
from stages.training.dataset import Dataset
from stages.training.encode import (
    Example,
    Examples,
    encode_examples,
    encode_image,
    read_pixel_values,
    shortened,
)
from stages.training.loop import train
from tests.tiny_sd import MAX_LENGTH
from tests.tiny_training import (
    EXAMPLES,
    HELD_OUT,
    PARAMS,
    base,
    hashes,
    one_thread,
    picture,
    start,
    start_from,
)

__all__ = ["base", "one_thread"]  # fixtures are found by their names
pytestmark = pytest.mark.usefixtures("one_thread")

SQUARE, WIDE = Bucket(16, 16), Bucket(24, 8)


def encoded(
    base: Path, folder: Path, examples: Examples, *, keep_tokens: bool = False, ranks: int = 1
) -> Dataset:
    models = load_models(base / "base.safetensors", base / "config")
    for rank in range(ranks):
        encode_examples(
            models,
            examples,
            [SQUARE, WIDE],
            folder,
            keep_tokens=keep_tokens,
            rank=rank,
            ranks=ranks,
        )
    return Dataset(folder)


def test_pictures_are_cropped_to_their_bucket(base: Path, tmp_path: Path) -> None:
    wide = replace(EXAMPLES[0], image=picture(0, 40, 14), id="wide")
    data = encoded(base, tmp_path, [wide, EXAMPLES[0]])
    assert data.ids == ("000", "wide")
    assert data.shapes == ((4, 2, 2), (4, 1, 3))
    assert data.take([0]).captions.shape == (1, 32, 32)
    assert data.no_caption.shape == (32, 32)


def test_what_cannot_be_read_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'bad' cannot be read"):
        encoded(base, tmp_path, [Example("bad", "", b"<html>")])
    with pytest.raises(ValueError, match="two examples have the id '000'"):
        encoded(base, tmp_path, EXAMPLES[:1] * 2)


def test_latents_that_are_not_finite_are_named(base: Path, tmp_path: Path) -> None:
    models = load_models(base / "base.safetensors", base / "config")
    next(iter(models.vae.parameters())).data[0] = float("nan")
    with pytest.raises(ValueError, match="picture '000': the VAE's latents are not finite"):
        encode_examples(models, EXAMPLES[:1], [SQUARE], tmp_path, keep_tokens=True)


def test_a_transparent_picture_is_drawn_on_white(base: Path, tmp_path: Path) -> None:
    file, white = BytesIO(), BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(file, "WEBP", lossless=True)
    Image.new("RGB", (16, 16), (255, 255, 255)).save(white, "PNG")
    examples = [Example("a", "", file.getvalue()), Example("b", "", white.getvalue())]
    batch = encoded(base, tmp_path, examples, keep_tokens=True).take([0, 1])
    assert torch.equal(batch.latents[0], batch.latents[1])
    assert batch.captions.dtype == torch.int64


def test_an_examples_encoding_does_not_depend_on_its_neighbours(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on the size of shards, nor on how many processes share the work."""
    together = encoded(base, tmp_path / "a", EXAMPLES[:9])
    monkeypatch.setattr(encode, "EXAMPLES_PER_SHARD", 2)
    apart = encoded(base, tmp_path / "b", EXAMPLES[8::-1], ranks=3)
    assert apart.ids == together.ids
    for row in range(9):
        ours, theirs = together.take([row]), apart.take([row])
        assert torch.equal(ours.latents, theirs.latents)
        assert torch.equal(ours.captions, theirs.captions)


def test_an_encoding_that_broke_off_keeps_its_shards(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "EXAMPLES_PER_SHARD", 4)
    with pytest.raises(ValueError, match="'bad' cannot be read"):
        encoded(base, tmp_path, [*EXAMPLES[:6], Example("bad", "", b"")])
    done = sorted(tmp_path.glob("0*.safetensors"))
    assert [path.name for path in done] == ["000000.safetensors"]
    before = done[0].stat().st_mtime_ns
    assert len(encoded(base, tmp_path, EXAMPLES[:7])) == 7
    assert done[0].stat().st_mtime_ns == before
    assert len({sha256_file(path) for path in tmp_path.glob("0*.safetensors")}) == 2


@pytest.mark.parametrize("kept_bytes", [0, 5, -10])
def test_a_shard_cut_short_is_named_and_encoded_anew_when_it_is_gone(
    base: Path, tmp_path: Path, kept_bytes: int
) -> None:
    encoded(base, tmp_path, EXAMPLES[:2])
    shard = tmp_path / "000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:kept_bytes])
    with pytest.raises(ValueError, match=r"000000\.safetensors is damaged .* encoded anew"):
        encoded(base, tmp_path, EXAMPLES[:2])
    shard.unlink()
    assert len(encoded(base, tmp_path, EXAMPLES[:2])) == 2


@pytest.mark.parametrize("words", [1, 10, 40])
def test_a_caption_that_is_too_long_is_cut_between_two_words(base: Path, words: int) -> None:
    tokenizer = load_models(base / "base.safetensors", base / "config").tokenizer
    caption = " ".join(["cat"] * words)
    text = shortened(tokenizer, caption)
    assert caption.startswith(text)
    assert text.endswith("cat")
    assert len(text.split()) == min(words, MAX_LENGTH - 2)  # "cat" is one token
    assert shortened(tokenizer, "x" * 99) == "x" * 99  # one word: the tokenizer cuts it


def test_runs_share_what_is_encoded_as_far_as_pictures_captions_and_sizes_are_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []

    def noted(vae: AutoencoderKL, pixel_values: torch.Tensor, id_: str) -> torch.Tensor:
        encoded.append(id_)
        return encode_image(vae, pixel_values, id_)

    monkeypatch.setattr(encode, "encode_image", noted)
    params = replace(PARAMS, max_epochs=1)
    other_caption = [replace(EXAMPLES[0], caption="owl"), *EXAMPLES[1:]]
    both, side = len(EXAMPLES) + len(HELD_OUT), len(EXAMPLES)
    for i, (changed, examples, count) in enumerate(
        (
            (params, EXAMPLES, both),
            (replace(params, seed=2, batch_size=2, optimizer="prodigy"), EXAMPLES, 0),
            (params, other_caption, side),
            (replace(params, resolution=24), EXAMPLES, both),
        )
    ):
        folder, encoded_here = tmp_path / str(i), tmp_path / "encoded"
        train(start_from(base), examples, HELD_OUT, changed, folder, encoded=encoded_here)
        assert len(encoded) == count
        encoded.clear()


def test_a_file_that_is_gone_is_encoded_anew(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.training.encode.EXAMPLES_PER_SHARD", 4)
    params = replace(PARAMS, max_epochs=1)
    for gone in ("000001.safetensors", "no_caption.safetensors"):
        unbroken = start(base, tmp_path / f"before {gone}", params, encoded=tmp_path / "encoded")
        (folder,) = (tmp_path / "encoded").glob("train-*")
        (folder / gone).unlink()
        again = start(base, tmp_path / f"after {gone}", params, encoded=tmp_path / "encoded")
        assert (folder / gone).is_file()
        assert hashes(again) == hashes(unbroken)


def test_cut_captions_are_counted_and_told_at_each_start(base: Path, tmp_path: Path) -> None:
    params = replace(PARAMS, max_epochs=1)
    examples = [replace(EXAMPLES[0], caption="cat " * 50), *EXAMPLES[1:4]]
    for _ in range(2):
        lines: list[str] = []
        train(start_from(base), examples, HELD_OUT, params, tmp_path, say=lines.append)
        assert "train: cut to what the text encoder reads: 1 caption" in lines


def test_grey_of_16_bits_keeps_its_shades() -> None:
    wide, narrow = BytesIO(), BytesIO()
    shades = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(shades * 257).save(wide, "PNG")
    Image.fromarray(shades.astype(np.uint8)).save(narrow, "PNG")
    pixels = [
        read_pixel_values(Example("1", "grey", file.getvalue()), [SQUARE])
        for file in (wide, narrow)
    ]
    assert pixels[0].equal(pixels[1])
