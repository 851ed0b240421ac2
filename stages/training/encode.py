"""Pictures and captions as the UNet sees them: encoded once, kept in shards.

A shard holds the latents and captions of EXAMPLES_PER_SHARD examples and is whole or absent, so
an encoding that was killed goes on, and several processes encode one folder together.
"""

import io
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor

from stages.diffusion.model import Models
from stages.harness.files import replacing
from stages.images.bucket import Bucket, centre_crop, nearest_bucket
from stages.training.dataset import CAPTION, CUT_CAPTIONS, LATENTS, NO_CAPTION

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

EXAMPLES_PER_SHARD = 128
CAPTIONS_AT_ONCE = 64
READERS = 8  # threads that decode and resize; the GPU encodes one picture at a time
WHITE = (255, 255, 255)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Example:
    """A picture and what it shows."""

    id: str
    caption: str
    image: bytes  # a file's: JPEG, PNG, WebP


class Captioned(Protocol):
    """A row that names a picture, as a manifest has it."""

    @property
    def id(self) -> str:
        """Give the picture's name."""

    @property
    def caption(self) -> str:
        """Give what it shows."""


def as_example(row: Captioned, image: bytes) -> Example:
    """Put a row and its picture's file together."""
    return Example(row.id, row.caption, image)


class Examples(Protocol):
    """A list of examples, or what reads them only when they are asked for."""

    def __len__(self) -> int:
        """Count them."""

    def __getitem__(self, part: slice, /) -> Iterable[Example]:
        """Give some of them."""


@torch.no_grad()
def encode_examples(
    models: Models,
    examples: Examples,
    choices: Sequence[Bucket],
    folder: Path,
    *,
    keep_tokens: bool,
    dtype: torch.dtype = torch.float32,
    rank: int = 0,
    ranks: int = 1,
    on_example: Callable[[int], None] = lambda count: None,  # noqa: ARG005
) -> None:
    """Encode examples into shards: pictures to latent means, captions to embeddings.

    Args:
        models: whose `vae` and `text_encoder` do it, on the device where they are.
        examples: ids must differ.
        choices: the buckets.
        folder: for these examples alone; shards that it holds are left as they are.
        keep_tokens: keep token ids for a text encoder that is itself trained.
        dtype: of the embeddings; latents are kept in float32.
        rank, ranks: this process encodes every `ranks`-th shard.
        on_example: told how many more pictures are done.

    Raises:
        ValueError: if a picture cannot be read or encoded; it is named.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def captions(texts: Sequence[str]) -> Tensor:
        input_ids = tokenize(models.tokenizer, texts)
        if keep_tokens:
            return input_ids
        return encode_captions(models.text_encoder, input_ids).to("cpu", dtype)

    if rank == 0 and not (folder / NO_CAPTION).is_file():
        with replacing(folder / NO_CAPTION) as scratch:
            save_file({CAPTION: captions([""])[0].clone()}, scratch)
    paths = shard_paths(folder, len(examples))
    for shard in range(len(paths))[rank::ranks]:
        part = slice(shard * EXAMPLES_PER_SHARD, (shard + 1) * EXAMPLES_PER_SHARD)
        path = paths[shard]
        if not path.is_file():
            texts, tensors = _encode_pictures(models, examples[part], choices)
            cut = sum(text != example for example, text in texts.values())
            for keys in _chunks(texts, CAPTIONS_AT_ONCE):
                encoded = captions([texts[key][1] for key in keys])
                tensors |= {key: row.clone() for key, row in zip(keys, encoded, strict=True)}
            with replacing(path) as scratch:
                save_file(tensors, scratch, metadata={CUT_CAPTIONS: str(cut)})
        on_example(len(range(*part.indices(len(examples)))))


def shard_paths(folder: Path, count: int) -> list[Path]:
    """Name the shards of so many examples."""
    return [folder / f"{i:06}.safetensors" for i in range(-(-count // EXAMPLES_PER_SHARD))]


def _encode_pictures(
    models: Models, examples: Iterable[Example], choices: Sequence[Bucket]
) -> tuple[dict[str, tuple[str, str]], dict[str, Tensor]]:
    """Give captions as they were and as they fit, by the keys of a shard; and the latents."""
    texts, tensors = {}, {}
    for few in _chunks(examples, READERS):
        for example, pixel_values in zip(few, _read_all(few, choices), strict=True):
            if LATENTS + example.id in tensors:
                raise ValueError(f"two examples have the id {example.id!r}; each needs its own")
            latents = encode_image(models.vae, pixel_values, example.id)
            tensors[LATENTS + example.id] = latents.cpu()
            fitting = shortened(models.tokenizer, example.caption)
            texts[CAPTION + example.id] = (example.caption, fitting)
    return texts, tensors


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    left = iter(items)
    while chunk := list(islice(left, size)):
        yield chunk


def _read_all(examples: list[Example], choices: Sequence[Bucket]) -> list[Tensor]:
    """Decode, resize and crop several pictures at once; Pillow lets go of Python's lock."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(lambda example: read_pixel_values(example, choices), examples))


def encode_image(vae: "AutoencoderKL", pixel_values: Tensor, id_: str) -> Tensor:
    """Encode one picture: (3, H, W) -> (4, h, w) float32, times the scaling factor.

    One at a time, so that a picture's latents do not depend on its neighbours, not even in the
    last bit.
    """
    means = vae.encode(pixel_values[None].to(vae.device, vae.dtype)).latent_dist.mode()[0]
    latents: Tensor = means.float() * vae.config.scaling_factor
    if not latents.isfinite().all():
        raise ValueError(
            f"picture {id_!r}: the VAE's latents are not finite. Is the VAE in float16? "
            "Load it in float32"
        )
    return latents


def read_pixel_values(example: Example, choices: Sequence[Bucket]) -> Tensor:
    """Decode, resize and crop a picture to its bucket: (3, H, W) in [-1, 1]; transparent is white.

    Raises:
        ValueError: if the bytes are no picture; the message names the example.
    """
    try:
        with Image.open(io.BytesIO(example.image)) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):  # Pillow would clip what is above 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.has_transparency_data:
                drawn = image.convert("RGBA")
                image = Image.new("RGB", drawn.size, WHITE)
                image.paste(drawn, mask=drawn.getchannel("A"))
            image = image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"picture {example.id!r} cannot be read: {error}") from error
    bucket = nearest_bucket(image.width, image.height, choices)
    resized = image.resize(
        (bucket.width, bucket.height),
        Image.Resampling.LANCZOS,
        box=centre_crop(image.width, image.height, bucket),
    )
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 127.5 - 1


def shortened(tokenizer: "CLIPTokenizer", caption: str) -> str:
    """Cut a caption that is too long for the tokenizer, between two words."""

    def fits(text: str) -> bool:
        ids = tokenizer(text, truncation=False, verbose=False).input_ids
        return len(ids) <= tokenizer.model_max_length

    if fits(caption):
        return caption
    starts = [caption[: word.end()] for word in re.finditer(r"\S+", caption)]
    return starts[max(0, bisect_left(starts, True, key=lambda text: not fits(text)) - 1)]


def tokenize(tokenizer: "CLIPTokenizer", captions: Sequence[str]) -> Tensor:
    """Turn captions into token ids, cut and padded to the model's length: (N, L) int64."""
    tokens = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
    input_ids: Tensor = tokens.input_ids
    return input_ids


def encode_captions(text_encoder: "CLIPTextModel", input_ids: Tensor) -> Tensor:
    """Give the last hidden states of captions: (N, L) -> (N, L, D).

    Always in batches of one size, so that a caption's last bit does not depend on how many others
    there are.
    """
    hidden = []
    for few in input_ids.split(CAPTIONS_AT_ONCE):
        full = F.pad(few, (0, 0, 0, CAPTIONS_AT_ONCE - len(few)))
        states = text_encoder(full.to(text_encoder.device)).last_hidden_state
        hidden.append(states[: len(few)])
    return torch.cat(hidden)
