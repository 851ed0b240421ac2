"""Pictures drawn on the way: what becomes of them where memory is short."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from stages.diffusion.model import Models
from stages.diffusion.sample import draw
from stages.training import preview
from tests.tiny_training import PARAMS, base, hashes, one_thread, start

__all__ = ["base", "one_thread"]  # fixtures are found by their names
pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ("cat", "dog", "owl", "fox", "cow")
RUN = replace(
    PARAMS, max_epochs=2, samples=replace(PARAMS.samples, every_epochs=1, prompts=PROMPTS)
)


ON_GPU = torch.OutOfMemoryError("no room")
ON_CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def leave_room_for(
    count: int, monkeypatch: pytest.MonkeyPatch, error: Exception = ON_GPU
) -> list[int]:
    """Let memory suffice for so many pictures at once; tell how many were tried each time."""
    tried: list[int] = []

    def small(models: Models, prompts: Sequence[str], *rest: object) -> list[Image.Image]:
        tried.append(len(prompts))
        if len(prompts) > count:
            raise error
        return draw(models, prompts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(preview, "draw", small)
    return tried


def test_pictures_that_do_not_fit_together_are_drawn_in_smaller_batches(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = start(base, tmp_path / "a", RUN)
    tried = leave_room_for(2, monkeypatch)
    apart = start(base, tmp_path / "b", RUN)
    assert tried == 2 * [5, 3, 2, 2, 2]
    for epoch, path in together.samples.items():
        with Image.open(path) as a, Image.open(apart.samples[epoch]) as b:
            assert a.size == b.size
            differences = (x - y for x, y in zip(a.tobytes(), b.tobytes(), strict=True))
            assert max(map(abs, differences)) <= 1  # batches of other sizes round differently


@pytest.mark.parametrize("error", [ON_GPU, ON_CPU])
def test_a_run_goes_on_without_a_picture_that_does_not_fit_and_says_so(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    plain = start(base, tmp_path / "a", RUN)
    leave_room_for(0, monkeypatch, error)
    lines: list[str] = []
    without = start(base, tmp_path / "b", RUN, say=lines.append)
    assert hashes(without) == hashes(plain)
    assert without.samples == {}
    said = [line for line in lines if "no memory for a sample picture of 16 px" in line]
    assert "left out, for 1 epoch so far" in said[0]
    assert "left out, for 2 epochs so far" in said[1]
    assert "set samples.every_epochs to 0" in said[0]
    assert not any("batch_size" in line for line in said)
