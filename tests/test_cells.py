"""Cells: addresses, the cache, the plan."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.diffusion.device_kind import device_kind
from stages.drawing.cache import CellCache
from stages.drawing.cell import DRAWING_VERSION, Cell, drawing_version
from stages.drawing.grid_params import GridParams, planned_cells
from stages.drawing.manifest import read_manifest
from stages.harness.params import load_params
from stages.images.known_hash import KnownHashes
from tests.imports import ROOT

CELL = Cell(
    weights="w",
    config="c",
    prompt="red apple",
    negative_prompt="",
    seed=1,
    width=64,
    height=96,
    sampler="euler",
    steps=15,
    guidance=5.0,
    clip_skip=1,
    dtype="float32",
    batch_size=1,
    compile=False,
    vae_tile_px=0,
    engine="torch",
    drawing="1",
)
GRID = """
grid:
  prompts: [red apple, "blue, heart"]
  negative_prompt: ""
  seeds: [1, 2]
  sizes: [[64, 64], [96, 64]]
  sampler: euler
  steps: 2
  guidance: 5.0
  clip_skip: 1
  dtype: float32
  batch_size: 4
  compile: false
  vae_tile_px: 0
  engine: torch
  axes: {replace: [], sampler: [], steps: [], guidance: [], clip_skip: []}
  comfyui: {servers: [], workflow: w.json, timeout_s: 60.0}
  score:
    {more: [], aesthetic_clip: "", aesthetic_head: "", resamples: 9, confidence: 0.95, seed: 1}
  sheet: {scale: 2, max_side_px: 16383, format: png, quality: 90}
"""


def grid_params(tmp_path: Path, text: str = GRID) -> GridParams:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return load_params("grid", GridParams, path)


def changed_addresses(cell: Cell) -> set[str]:
    """Name the fields of which another value gives another address."""
    changing = set()
    for field in dataclasses.fields(Cell):
        value = getattr(cell, field.name)
        changed: Any = value + "x" if isinstance(value, str) else value + 1
        changed = not value if isinstance(value, bool) else changed
        if field.name != "engine":
            other = dataclasses.replace(cell, **{field.name: changed})
            changing |= {field.name} if other.address != cell.address else set()
    return changing


def test_whatever_determines_a_picture_changes_its_address_and_nothing_else_does() -> None:
    everywhere = {
        "weights", "prompt", "negative_prompt", "seed", "width", "height", "sampler", "steps",
        "guidance", "clip_skip", "drawing",
    }  # fmt: skip
    here_alone = {"config", "dtype", "batch_size", "compile", "vae_tile_px"}
    assert changed_addresses(CELL) == everywhere | here_alone
    by_server = dataclasses.replace(CELL, engine="comfyui")
    assert changed_addresses(by_server) == everywhere, "a server is told nothing else"
    assert by_server.address != CELL.address


def test_the_kind_of_device_is_part_of_what_draws() -> None:
    assert drawing_version("cpu") != drawing_version("cuda")
    assert drawing_version("cpu").startswith(f"{DRAWING_VERSION}, torch ")


def test_torch_is_asked_for_a_gpu_only_where_there_may_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    node = tmp_path / "gpu"
    monkeypatch.setattr("stages.diffusion.device_kind.GPU_NODES", (str(node),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_kind() == "cpu"
    node.touch()
    assert device_kind() == "cuda"


def test_the_address_of_a_cell_never_changes() -> None:
    assert CELL.address.startswith("12190c3d"), (
        "every picture that anybody drew would be drawn again"
    )


def test_the_plan_is_every_prompt_at_every_size_and_seed(tmp_path: Path) -> None:
    cells = planned_cells(grid_params(tmp_path), "w", "c", "1")
    assert len({cell.address for cell in cells}) == 2 * 2 * 2
    assert [(c.width, c.prompt, c.seed) for c in cells[:3]] == [
        (64, "red apple", 1),
        (64, "red apple", 2),
        (64, "blue, heart", 1),
    ]


def test_one_more_prompt_leaves_the_other_addresses_as_they_were(tmp_path: Path) -> None:
    before = planned_cells(grid_params(tmp_path), "w", "c", "1")
    more = GRID.replace("[red apple,", "[a cat, red apple,")
    after = planned_cells(grid_params(tmp_path, more), "w", "c", "1")
    assert {c.address for c in before} < {c.address for c in after}
    assert len(after) - len(before) == 4


def test_the_cache_keeps_pixels_and_how_they_were_drawn_and_nothing_else(tmp_path: Path) -> None:
    cache = CellCache(tmp_path / "cells")
    assert cache.find(CELL) is None
    picture = Image.radial_gradient("L").convert("RGB")
    bare = cache.put(CELL, picture).read_bytes()
    picture.info["parameters"] = "said by the drawer"
    path = cache.put(CELL, picture)
    assert path.read_bytes() == bare
    assert path == tmp_path / "cells" / CELL.address[:2] / f"{CELL.address[2:]}.png"
    assert cache.find(CELL) == path
    with Image.open(path) as kept:
        assert kept.tobytes() == picture.tobytes()
        assert kept.info == {"parameters": CELL.parameters()}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_parameters_of_a_picture_are_those_that_a1111_reads() -> None:
    cell = dataclasses.replace(
        CELL, negative_prompt="blurry", sampler="dpmpp_2m_karras", clip_skip=2, guidance=7.5
    )
    assert cell.parameters() == (
        "red apple\n"
        "Negative prompt: blurry\n"
        "Steps: 15, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1, "
        "Size: 64x96, Model hash: w, Clip skip: 2, RNG: CPU, SGM noise multiplier: True"
    )


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        ("euler", "Sampler: Euler, Schedule type: Uniform,"),
        ("dpmpp_2m", "Sampler: DPM++ 2M, Schedule type: Uniform,"),  # or A1111 takes Karras
        ("ddim", "Sampler: DDIM, Schedule type: Automatic,"),
    ],
)
def test_a1111_is_told_the_schedule_and_whose_noise_it_is(sampler: str, said: str) -> None:
    parameters = dataclasses.replace(CELL, sampler=sampler).parameters()
    assert said in parameters
    assert ", RNG: CPU" in parameters
    assert parameters.endswith("multiplier: True") == (sampler != "ddim")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[64, 64], [96, 64]]", "[[60, 64]]", r"size 60 x 64 px: .* multiples of 8"),
        ("seeds: [1, 2]", "seeds: [1, 1]", "seeds holds 1 twice"),
        (
            "seeds: [1, 2]",
            "seeds: [-1]",
            "seeds must lie between 0 and 18446744073709551615, got -",
        ),
        ("seeds: [1, 2]", f"seeds: [{2**64}]", "seeds must lie between 0 and 1844"),
        ('prompts: [red apple, "blue, heart"]', "prompts: []", "prompts is empty"),
        ("dtype: float32", "dtype: int8", "unknown dtype 'int8'"),
        ("sampler: euler", "sampler: euler_a", "unknown sampler 'euler_a'; known: ddim, dpm"),
        ("sampler: []", "sampler: [lms]", "unknown sampler 'lms'"),
        ("clip_skip: 1", "clip_skip: 0", "clip_skip must be at least 1"),
        ("steps: 2", "steps: 1001", "steps must be at most 1000, those of the noise schedule"),
        ("steps: []", "steps: [2000]", "steps must be at most 1000"),
        ("guidance: 5.0", "guidance: .nan", "guidance must be a finite number, got nan"),
        ("guidance: []", "guidance: [.inf]", "guidance must be a finite number, got inf"),
        ("vae_tile_px: 0", "vae_tile_px: 60", "vae_tile_px must be 0 or a multiple of 32"),
        ("engine: torch", "engine: a1111", "unknown engine 'a1111'; known: torch, comfyui"),
        ("engine: torch", "engine: comfyui", "comfyui.servers is empty"),
        ("replace: []", "replace: [[red, b], [red, b]]", "axes.replace holds 'red → b' twice"),
        ("replace: []", "replace: [[green, red]]", "axes.replace: no prompt says 'green'"),
        (
            '"blue, heart"',
            '{category: a, negative_prompt: "", prompts: [red apple]}',
            "'red apple' t",
        ),
        (
            '[red apple, "blue, heart"]',
            '[{category: a, negative_prompt: "", prompts: []}]',
            "sets without a prompt",
        ),
        ("format: png", "format: gif", "unknown format 'gif'; known: png, jpeg, webp"),
        ("quality: 90", "quality: 0", "quality must lie between 1 and 100"),
        ("steps: 2", "step: 2", r"unknown key 'grid.step'; did you mean 'steps'"),
    ],
)
def test_a_plan_that_cannot_be_drawn_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grid_params(tmp_path, GRID.replace(old, new))


def test_a_folder_without_a_grid_says_how_to_draw_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"stages\.grid_cells"):
        read_manifest(tmp_path)
    (tmp_path / "cells.json").write_text('{"group": "x"}')
    with pytest.raises(ValueError, match="not a grid's manifest"):
        read_manifest(tmp_path)


def test_axes_multiply_and_say_by_what_a_cell_differs(tmp_path: Path) -> None:
    text = GRID.replace("sampler: []", "sampler: [ddim]").replace(
        "guidance: []", "guidance: [1, 7]"
    )
    params = grid_params(tmp_path, text.replace("seeds: [1, 2]", "seeds: [1]"))
    cells = planned_cells(params, "w", "c", "1")
    assert len({cell.address for cell in cells}) == 2 * 2 * 2 * 3  # prompts, sizes, axes
    assert [params.label(cell) for cell in cells[:12:2]] == [
        "euler, guidance 5", "euler, guidance 1", "euler, guidance 7",
        "ddim, guidance 5", "ddim, guidance 1", "ddim, guidance 7",
    ]  # fmt: skip
    plain = grid_params(tmp_path)
    alone = planned_cells(plain, "w", "c", "1")
    assert {plain.label(cell) for cell in alone} == {""}
    assert {c.address for c in alone if c.seed == 1} < {c.address for c in cells}


def test_search_and_replace_adds_what_a_prompt_then_says(tmp_path: Path) -> None:
    text = GRID.replace("replace: []", "replace: [[red, green], [apple, pear]]")
    prompts = grid_params(tmp_path, text).all_prompts()
    assert [(prompt.text, prompt.written, prompt.replaced) for prompt in prompts] == [
        ("red apple", "red apple", ""),
        ("green apple", "red apple", "red → green"),
        ("red pear", "red apple", "apple → pear"),
        ("blue, heart", "blue, heart", ""),
    ]


@pytest.mark.parametrize(
    ("replace", "made"),
    [
        ("[[red apple, 'blue, heart']]", "'blue, heart' of 'red apple'"),
        ("[[red, red]]", "'red apple' of 'red apple'"),
        ("[[red, green], [red apple, green apple]]", "'green apple' of 'red apple'"),
    ],
)
def test_search_and_replace_that_would_draw_a_prompt_twice_is_refused(
    tmp_path: Path, replace: str, made: str
) -> None:
    text = GRID.replace("replace: []", f"replace: {replace}")
    with pytest.raises(ValueError, match=f"makes {made}, which is drawn anyway; leave one"):
        grid_params(tmp_path, text)


def test_a_set_has_a_category_and_a_negative_prompt_of_its_own(tmp_path: Path) -> None:
    text = GRID.replace(
        '"blue, heart"', "{category: people, negative_prompt: blurry, prompts: [a man]}"
    )
    apple, man = grid_params(tmp_path, text).all_prompts()
    assert (apple.category, apple.negative) == ("", "")
    assert (man.category, man.negative) == ("people", "blurry")


def test_the_article_s_prompts_are_21_in_categories() -> None:
    params = load_params("grid", GridParams, ROOT / "profiles/sd15.yaml")
    prompts = params.all_prompts()
    assert len(prompts) == 21
    assert all(prompt.category for prompt in prompts)
    assert len(planned_cells(params, "w", "c", "1")) == 168


def test_many_files_are_hashed_at_once_and_all_are_known_afterwards(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}" for number in range(20)]
    for file in files:
        file.write_bytes(file.name.encode())
    book = KnownHashes(tmp_path / "hashes.jsonl")
    assert not any(map(book.knows, files))
    expected = [hashlib.sha256(file.name.encode()).hexdigest() for file in files]
    assert book.sha256_of_all(files) == expected
    assert all(map(KnownHashes(tmp_path / "hashes.jsonl").knows, files))


def test_a_hash_is_known_until_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, book = tmp_path / "weights", tmp_path / "hashes.jsonl"
    file.write_bytes(b"one")
    first = KnownHashes(book).sha256(file)
    with book.open("a") as cut:
        cut.write('\n["1 2 3')
    with monkeypatch.context() as patch:
        patch.setattr("stages.images.known_hash.sha256_file", lambda _: pytest.fail("known"))
        assert KnownHashes(book).sha256(file) == first
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert KnownHashes(book).sha256(file) == hashlib.sha256(b"two").hexdigest() != first
