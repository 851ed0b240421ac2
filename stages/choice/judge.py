"""Who scores pictures: a CLIP, or a head over it, that pays once for each picture it has seen."""

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from stages.choice.cmmd import Floats, cmmd
from stages.choice.score_params import ScoreParams
from stages.choice.scorebook import ScoreBook, VectorBook
from stages.choice.scores import Score
from stages.choice.summary import Mean, mean_of
from stages.diffusion.device_kind import device_kind
from stages.drawing.cell import drawing_version
from stages.drawing.manifest import Manifest
from stages.harness.files import sha256_file, sha256_folder, sha256_json
from stages.harness.progress import Progress
from stages.harness.scratch import work_dir
from stages.images.manifest import read_manifest, read_pictures

if TYPE_CHECKING:
    from stages.diffusion.aesthetic import AestheticHead
    from stages.diffusion.scorer import Scorer


class Judge:
    """A CLIP, and a head if it has one, that remembers what it has seen."""

    def __init__(self, clip: Path, head: Path | None = None) -> None:
        """Open its books; the networks are loaded when there is something new to see."""
        self.clip, self.head = clip, head
        parts = [
            sha256_folder(clip),
            *([_sha256_of(head)] if head else []),
            drawing_version(device_kind()),
        ]
        name = sha256_json(parts)[:16]
        self.book = ScoreBook(work_dir("scores"), name)
        self.vectors = VectorBook(work_dir("scores"), name)

    def look(self, manifest: Manifest, cells: Path) -> None:
        """Score the pictures that were not scored before.

        Raises:
            ValueError: if a score is no finite number.
        """
        missing = [
            entry
            for entry in manifest.entries
            if entry.file
            and (self.book.find(entry.address) is None or self.vectors.find(entry.address) is None)
        ]
        print(
            f"grid {manifest.group}: {len(manifest.entries):,} cells to score by "
            f"{(self.head or self.clip).name}, {len(missing):,} of them for the first time",
            flush=True,
        )
        if not missing:
            return
        progress = Progress(f"scores {manifest.group}", len(missing))
        scorer = _load_scorer(self.clip)
        head = _load_head(self.head, scorer.width) if self.head else None
        for entry in missing:
            assert entry.file
            with Image.open(cells / entry.file) as picture:
                embedding = scorer.embed(picture)
            score = (
                head.score(embedding) if head else scorer.score_embedding(embedding, entry.prompt)
            )
            if not math.isfinite(score):
                raise ValueError(
                    f"{self.head or self.clip}: scores {entry.file} as {score}; are its weights "
                    "broken?"
                )
            self.vectors.put(entry.address, embedding[0].cpu().numpy())
            self.book.put(entry.address, score)
            progress.advance()
        progress.close()

    def scores(self, manifest: Manifest) -> list[Score]:
        """List every cell's score."""
        return [
            Score(
                e.model,
                e.as_written,
                e.seed,
                e.width,
                e.height,
                self.book.find(e.address) if e.file else None,  # it may have been drawn elsewhere
                e.variant,
                e.address,
            )
            for e in manifest.entries
        ]

    def real(self, validation: Path) -> Floats:
        """Embed the real pictures of a manifest, (n, D)."""
        found = []
        scorer = None
        for entry, content in read_pictures(read_manifest(validation)):
            vector = self.vectors.find(entry.sha256)
            if vector is None:
                scorer = scorer or _load_scorer(self.clip)
                with Image.open(io.BytesIO(content)) as picture:
                    seen = ImageOps.exif_transpose(picture)
                    self.vectors.put(entry.sha256, scorer.embed(seen)[0].cpu().numpy())
                vector = self.vectors.find(entry.sha256)
            assert vector is not None
            found.append(vector)
        return np.stack(found)


def cmmd_means(
    manifest: Manifest, judge: Judge, validation: Path, params: ScoreParams
) -> list[Mean]:
    """Compare each model's pictures with real ones.

    Those that failed are counted beside it: the distance lacks them, and may be less for that.
    """
    real = judge.real(validation)
    if len(real) < 2:
        raise ValueError(f"{validation}: one picture is too few to compare with")
    means = []
    for model in manifest.models:
        entries = [e for e in manifest.entries if e.model == model]
        seen = [
            (e.as_written, vector)
            for e in entries
            if e.file and (vector := judge.vectors.find(e.address)) is not None
        ]
        if len(seen) < 2:
            continue
        prompts = [prompt for prompt, _ in seen]
        drawn = np.stack([vector for _, vector in seen])
        value, resampled = cmmd(drawn, prompts, real, params.resamples, params.seed)
        mean = mean_of(model, "cmmd", value, resampled, len(set(prompts)), params)
        means.append(replace(mean, left_out=len(entries) - len(seen)))
    return means


def _sha256_of(head: Path) -> str:
    if not head.is_file():
        raise FileNotFoundError(f"{head}: no such weights of an aesthetic head")
    return sha256_file(head)


def _load_scorer(clip: Path) -> "Scorer":
    from stages.diffusion.scorer import Scorer

    return Scorer(clip)


def _load_head(path: Path, width: int) -> "AestheticHead":
    from stages.diffusion.aesthetic import AestheticHead

    return AestheticHead(path, width)
