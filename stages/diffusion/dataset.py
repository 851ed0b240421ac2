"""Pictures and captions as the UNet sees them: encoded once, then batched by bucket."""

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from stages.diffusion import noise
from stages.diffusion.model import Models
from stages.images.bucket import Bucket, centre_crop, nearest_bucket

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

NO_CAPTION = 0  # row of the empty caption
CAPTIONS_AT_ONCE = 64
WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Example:
    """A picture and what it shows."""

    id: str
    caption: str
    image: bytes  # a file's: JPEG, PNG, WebP


@dataclass(frozen=True, slots=True)
class Dataset:
    """Encoded examples, by rising id."""

    ids: tuple[str, ...]
    latents: tuple[Tensor, ...]  # of each example: (4, h, w)
    caption_rows: Tensor  # (N,) int64, into `captions`
    captions: Tensor  # (C, L, D) last hidden states, or (C, L) int64 token ids; row 0 is ""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> "Batch":
        """Collect examples of one bucket."""
        return Batch(
            ids=tuple(self.ids[row] for row in rows),
            latents=torch.stack([self.latents[row] for row in rows]),
            captions=self.captions[self.caption_rows[list(rows)]],
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of one bucket."""

    ids: tuple[str, ...]
    latents: Tensor  # (B, 4, h, w)
    captions: Tensor  # (B, L, D) last hidden states, or (B, L) int64 token ids

    def __len__(self) -> int:
        return len(self.ids)


@torch.no_grad()
def encode(
    models: Models,
    examples: Iterable[Example],
    choices: Sequence[Bucket],
    *,
    keep_tokens: bool,
    dtype: torch.dtype = torch.float32,
    on_example: Callable[[], None] = lambda: None,
) -> Dataset:
    """Encode examples: pictures to latent means, captions to embeddings.

    Args:
        models: whose `vae` and `text_encoder` do it, on the device where they are.
        examples: in any order, read one by one; ids must differ.
        choices: the buckets.
        keep_tokens: keep token ids for a text encoder that is itself trained.
        dtype: of the latents and embeddings kept, on the CPU.
        on_example: called after each picture.

    Raises:
        ValueError: if an id repeats, or a picture cannot be read or encoded; it is named.
    """
    latents: dict[str, Tensor] = {}
    caption_of: dict[str, str] = {}
    for example in examples:
        if example.id in latents:
            raise ValueError(f"two examples have the id {example.id!r}; each needs its own")
        latents[example.id] = encode_image(models.vae, example, choices).to("cpu", dtype)
        caption_of[example.id] = example.caption
        on_example()
    ids = sorted(latents)
    texts = ["", *sorted(set(caption_of.values()) - {""})]
    rows = {caption: row for row, caption in enumerate(texts)}
    captions = tokenize(models.tokenizer, texts)
    if not keep_tokens:
        captions = encode_captions(models.text_encoder, captions).to("cpu", dtype)
    return Dataset(
        ids=tuple(ids),
        latents=tuple(latents[id_] for id_ in ids),
        caption_rows=torch.tensor([rows[caption_of[id_]] for id_ in ids], dtype=torch.int64),
        captions=captions,
    )


def encode_image(vae: "AutoencoderKL", example: Example, choices: Sequence[Bucket]) -> Tensor:
    """Encode one picture, cropped to its bucket: (4, h, w), times the scaling factor.

    One at a time, so that a picture's latents do not depend on its neighbours, not even in the
    last bit.
    """
    pixel_values = read_pixel_values(example, choices)[None].to(vae.device, vae.dtype)
    means = vae.encode(pixel_values).latent_dist.mode()[0]
    latents: Tensor = means.float() * vae.config.scaling_factor
    if not latents.isfinite().all():
        raise ValueError(
            f"picture {example.id!r}: the VAE's latents are not finite. Is the VAE in float16? "
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


def tokenize(tokenizer: "CLIPTokenizer", captions: Sequence[str]) -> Tensor:
    """Turn captions into token ids, cut and padded to the model's length: (N, L) int64."""
    tokens = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
    input_ids: Tensor = tokens.input_ids
    return input_ids


def encode_captions(text_encoder: "CLIPTextModel", input_ids: Tensor) -> Tensor:
    """Give the last hidden states of captions: (N, L) -> (N, L, D)."""
    parts = input_ids.to(text_encoder.device).split(CAPTIONS_AT_ONCE)
    return torch.cat([text_encoder(part).last_hidden_state for part in parts])


def epoch_batches(dataset: Dataset, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffle rows within buckets and batches among each other; a pure function of its arguments.

    Returns:
        Rows of each batch, all of one bucket. Each row appears once: a bucket's last batch may
        be smaller.
    """
    rng = noise.generator(seed, "order", epoch)
    batches = []
    for rows in by_shape(dataset):
        shuffled = rng.permutation(rows).tolist()
        batches += _chunks(shuffled, batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


def by_shape(dataset: Dataset) -> list[list[int]]:
    """Group rows by the shape of their latents, smallest first."""
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, latents in enumerate(dataset.latents):
        groups[tuple(latents.shape)].append(row)
    return [groups[shape] for shape in sorted(groups)]


def in_order(dataset: Dataset, batch_size: int) -> Iterator[list[int]]:
    """Give rows of each batch, one bucket after the other, unshuffled."""
    for rows in by_shape(dataset):
        yield from _chunks(rows, batch_size)


def _chunks(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
