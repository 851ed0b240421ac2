"""The release: what it says about itself, the gate of the licences, and the hashes."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from stages.diffusion.header import read_header
from stages.diffusion.model import load_models, save_single_file, write_single_file
from stages.drawing.manifest import Entry
from stages.harness.files import write_json
from stages.lineage.ancestry import (
    COPIED,
    RECIPE,
    UNPROVEN,
    Ancestor,
    Lineage,
    made_from,
    read_lineage,
    read_parent,
)
from stages.lineage.digests import TENSORS_HASH, hash_tensors
from stages.lineage.in_file import doubt_warning
from stages.lineage.ingredient import Ingredient
from stages.merge import main as merge_main
from stages.merging.files import merge_files
from stages.release import main, run
from stages.releases.evidence import Evidence
from stages.releases.modelspec import ReleaseParams, sd_merge_recipe
from stages.releases.prediction import prediction_type
from tests.test_single_file import assert_same_weights, save
from tests.tiny_sd import TinySD, tiny_sd

__all__ = ["tiny_sd"]  # a fixture is found by its name

ROOT = Path(__file__).parent.parent
KEY = "model.diffusion_model.out.2.weight"
PARAMS = ReleaseParams(
    name="vodka-1.0",
    title="Vodka",
    author="A. Author",
    description="Draws *pictures*.",
    date="2026-11-23",
    licence="CreativeML Open RAIL-M",
    tags=("photo", "art"),
    usage_hint="Plain words",
    resolution=512,
)


def write(path: Path, value: float, metadata: dict[str, str] | None = None) -> Path:
    tensors = {KEY: torch.full((2, 2), float(value))}
    write_single_file(path, tensors, metadata or {}, torch.float16)
    return path


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def winner(tmp_path: Path) -> Path:
    """Make base -> 512 -> hybrid with an ingredient -> cocktail with another."""
    base = write(tmp_path / "base.safetensors", 1)
    parent = read_parent(base, read_header(base).metadata)
    recipe = made_from({"kind": "train", "run": "512"}, {"base": parent})
    trained = write(tmp_path / "512.safetensors", 2, {**recipe, "epoch": "40"})
    x, y = write(tmp_path / "x.safetensors", 4), write(tmp_path / "y.safetensors", 8)
    hybrid, cocktail = tmp_path / "hybrid.safetensors", tmp_path / "cocktail.safetensors"
    pair = {"a": trained, "b": x}
    merge_files(pair, "0.5*a + 0.5*b", hybrid, "float32", name="hybrid")
    last = {"vodka": hybrid, "y": y, "x": x}
    merge_files(last, "0.6*vodka + 0.2*x + 0.2*y", cocktail, "float16", name="512_trained")
    return cocktail


def ingredients(folder: Path) -> dict[str, Ingredient]:
    names = {"base-model": "base", "realistic": "x", "general": "y"}
    return {
        name: Ingredient(
            path=str(folder / f"{stem}.safetensors"),
            licence=f"Licence of {name}",
            merging_allowed=True,
            source=f"https://example.org/{stem}",
            attribution=f"Author of {name}",
        )
        for name, stem in names.items()
    }


def release(winner: Path, **changed: Ingredient) -> Path:
    known = {**ingredients(winner.parent), **changed}
    out = winner.parent / "release"
    run(winner, out, winner.parent / "release.json", PARAMS, known)
    return out / f"{PARAMS.name}.safetensors"


def test_the_released_file_says_what_it_is(winner: Path) -> None:
    path = release(winner)
    metadata = read_header(path).metadata
    spec = {
        key.removeprefix("modelspec."): value
        for key, value in metadata.items()
        if key.startswith("modelspec.")
    }
    hash_of_tensors = spec.pop("hash_sha256")
    assert spec == {
        "sai_model_spec": "1.0.1",
        "architecture": "stable-diffusion-v1",
        "implementation": "https://github.com/CompVis/stable-diffusion",
        "title": "Vodka",
        "author": "A. Author",
        "description": "Draws *pictures*.",
        "date": "2026-11-23",
        "license": "CreativeML Open RAIL-M",
        "usage_hint": "Plain words",
        "tags": "photo, art",
        "resolution": "512x512",
        "prediction_type": "epsilon",
        "merged_from": "hybrid, realistic, general",
    }
    content = path.read_bytes()
    start = min(entry.start for entry in read_header(path).tensors.values())
    assert hash_of_tensors == "0x" + sha256(content[start:]).hexdigest()
    assert read_lineage(metadata) == read_lineage(read_header(winner).metadata)
    assert str(winner.parent) not in str(metadata)


def test_the_weights_are_those_that_won(winner: Path) -> None:
    before, after = load_file(winner), load_file(release(winner))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    value = 0.6 * (0.5 * 2 + 0.5 * 4) + 0.2 * 4 + 0.2 * 8
    assert torch.equal(after[KEY], torch.full((2, 2), value).half())


def test_a1111_finds_its_merge_keys(winner: Path) -> None:
    metadata = read_header(release(winner)).metadata
    recipe = json.loads(metadata["sd_merge_recipe"])
    folder = winner.parent
    assert recipe["primary_model_hash"] == digest(folder / "hybrid.safetensors")
    assert recipe["tertiary_model_hash"] == digest(folder / "y.safetensors")
    assert recipe["interp_method"] == "expression"
    assert recipe["save_as_half"] is True
    models = json.loads(metadata["sd_merge_models"])
    hybrid = models[digest(folder / "hybrid.safetensors")]["sd_merge_recipe"]
    assert (hybrid["interp_method"], hybrid["multiplier"]) == ("Weighted sum", 0.5)
    x = models[digest(folder / "x.safetensors")]
    empty = sha256(b"").hexdigest()[:8]  # the file ends before 1 MiB
    assert x == {"name": "realistic", "legacy_hash": empty, "sd_merge_recipe": None}


@pytest.mark.parametrize(
    ("expression", "method", "multiplier"),
    [
        ("0.7*a + 0.3*b", "Weighted sum", 0.3),
        ("1.5*a - 0.5*b", "expression", None),
        ("0.5*a + 0.4*b", "expression", None),
        ("a + 0.5*(b - c)", "Add difference", 0.5),
        ("a - 0.5*(b - c)", "expression", None),
        ("0.6*a + 0.2*b + 0.2*c", "expression", None),
    ],
)
def test_a1111_s_methods_are_named_for_what_they_can_do_alone(
    expression: str, method: str, multiplier: float | None
) -> None:
    inputs = {name: name * 64 for name in "abc" if name in expression}
    recipe = {"kind": "merge", "expression": expression, "inputs": inputs}
    told = sd_merge_recipe(recipe, "x")
    assert told is not None
    assert (told["interp_method"], told["multiplier"]) == (method, multiplier)


def test_the_card_tells_ancestry_licences_and_hashes(winner: Path) -> None:
    path = release(winner)
    card = path.with_suffix(".md").read_text()
    for words in (
        "# Vodka\n",
        "`0.6*vodka + 0.2*x + 0.2*y`",
        "- `vodka`: **hybrid**, `0.5*a + 0.5*b`",
        "  - `a`: **512, epoch 40**, trained",
        "    - `base`: **base-model** (",
        "| 512, epoch 40 | 0.3 |",
        "| realistic | 0.5 |",
        "| general | 0.2 |",
        "| base-model | Licence of base-model | Author of base-model | https://example.org/base |",
        f"`{digest(path)}`",
    ):
        assert words in card, words


def test_the_hashes_are_those_of_the_tools(winner: Path) -> None:
    """AutoV1 reads at 1 MiB, so the file must be longer."""
    tensors = {KEY: torch.randn(800_000, generator=torch.Generator().manual_seed(0))}
    long = winner.parent / "long.safetensors"
    recipe = {k: v for k, v in read_header(winner).metadata.items() if "cosmopolitan" in k}
    write_single_file(long, tensors, recipe, torch.float16)
    content = release(long).read_bytes()
    report = json.loads((winner.parent / "release.json").read_text())
    header = 8 + int.from_bytes(content[:8], "little")
    assert report["sha256"] == sha256(content).hexdigest()
    assert report["auto_v1"] == sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert report["auto_v2"] == sha256(content).hexdigest()[:10]
    assert report["auto_v3"] == sha256(content[header:]).hexdigest()[:12]
    assert report["crc32"] == f"{zlib.crc32(content):08x}"
    assert report["bytes"] == len(content)


def test_the_report_tells_leaves_from_the_merges_on_the_way(winner: Path) -> None:
    release(winner)
    report = json.loads((winner.parent / "release.json").read_text())
    leaves = {name: leaf["weight"] for name, leaf in report["leaves"].items()}
    assert leaves == {"512, epoch 40": 0.3, "realistic": 0.5, "general": 0.2}
    assert {name: merge["weight"] for name, merge in report["merges"].items()} == {"hybrid": 0.6}
    assert report["leaves"]["realistic"]["sha256"] == digest(winner.parent / "x.safetensors")
    assert set(report["ingredients"]) == {"base-model", "realistic", "general"}
    assert report["ingredients"]["base-model"]["licence"] == "Licence of base-model"


def test_two_sources_of_one_title_are_both_in_the_report(winner: Path) -> None:
    """Two epochs' worth of runs may be called alike; their weights must not fall together."""
    known = ingredients(winner.parent)
    files = [
        write(winner.parent / folder / "same.safetensors", i + 20) for i, folder in enumerate("pq")
    ]
    for i, path in enumerate(files):
        known[f"source_{i}"] = replace(known["general"], path=str(path))
    trained = []
    for i, path in enumerate(files):
        parent = read_parent(path, read_header(path).metadata)
        recipe = made_from({"kind": "train", "run": "512"}, {"base": parent})
        trained.append(write(winner.parent / f"{i}.safetensors", i, {**recipe, "epoch": "40"}))
    both = winner.parent / "both.safetensors"
    merge_files(dict(zip("ab", trained, strict=True)), "0.25*a + 0.75*b", both, "float16")
    run(both, winner.parent / "release", winner.parent / "release.json", PARAMS, known)
    leaves = json.loads((winner.parent / "release.json").read_text())["leaves"]
    expected = {
        f"512, epoch 40, {digest(p)[:10]}": w for p, w in zip(trained, (0.25, 0.75), strict=True)
    }
    assert {name: leaf["weight"] for name, leaf in leaves.items()} == expected


def test_the_card_tells_two_trainings_of_one_title_apart(winner: Path) -> None:
    folder = winner.parent
    base = folder / "base.safetensors"
    parent = read_parent(base, read_header(base).metadata)
    trained = {}
    for name, rate in (("a", 0.5), ("b", 0.25)):
        recipe = {"kind": "train", "run": "512", "params": {"learning_rate": rate}}
        metadata = {**made_from(recipe, {"base": parent}), "epoch": "40"}
        trained[name] = write(folder / f"{name}.safetensors", ord(name), metadata)
    both = folder / "both.safetensors"
    merge_files(trained, "0.5*a + 0.5*b", both, "float16")
    card = release(both).with_suffix(".md").read_text()
    heads = [f"512, epoch 40, {digest(path)[:10]}" for path in trained.values()]
    assert f"| param | {heads[0]} | {heads[1]} |" in card
    assert re.search(r"learning\W*_rate \| 0\W+5 \| 0\W+25 \|", card)


def test_the_card_tells_where_a_part_that_was_taken_whole_is_from(winner: Path) -> None:
    folder = winner.parent
    vae, text = "first_stage_model.decoder.conv_in.weight", "cond_stage_model.transformer.x"
    for i, name in enumerate("xy"):
        tensors = {key: torch.full((2,), i + 1.0) for key in (KEY, vae, text)}
        write_single_file(folder / f"{name}.safetensors", tensors, {}, torch.float16)
    inputs = {name: folder / f"{name}.safetensors" for name in "xy"}
    hybrid, out = folder / "hybrid.safetensors", folder / "out.safetensors"
    merge_files(inputs, "parts(x, vae=y)", hybrid, "float16")
    merge_files({"h": hybrid}, "h", out, "float16")
    card = release(out).with_suffix(".md").read_text()
    assert "| realistic | 1 (VAE 0) |" in card
    assert "| general | 0 (VAE 1) |" in card


def test_the_same_inputs_give_the_same_bytes(winner: Path) -> None:
    first = release(winner)
    before = [path.read_bytes() for path in (first, first.with_suffix(".md"))]
    again = release(winner)
    assert [path.read_bytes() for path in (again, again.with_suffix(".md"))] == before


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("realistic", "through x."),
        ("base-model", "through hybrid <- 512, epoch 40 <- base."),
    ],
)
def test_a_forbidding_licence_stops_the_release_by_name(
    winner: Path, name: str, route: str
) -> None:
    forbidding = replace(ingredients(winner.parent)[name], merging_allowed=False)
    with pytest.raises(ValueError, match="may not be merged and released") as refusal:
        release(winner, **{name: forbidding})
    assert f"{name!r} (Licence of {name}), {route}" in str(refusal.value)
    assert not (winner.parent / "release").exists()


def test_a_winner_that_is_itself_forbidden_is_not_released(winner: Path) -> None:
    known = ingredients(winner.parent)["general"]
    itself = replace(known, path=str(winner), licence="Mine", merging_allowed=False)
    with pytest.raises(ValueError, match=r"'itself' \(Mine\), the file itself\."):
        release(winner, itself=itself)
    assert not (winner.parent / "release").exists()


def test_an_ingredient_outside_the_lineage_may_forbid_what_it_likes(winner: Path) -> None:
    outside = write(winner.parent / "outside.safetensors", 9)
    forbidding = replace(
        ingredients(winner.parent)["general"], path=str(outside), merging_allowed=False
    )
    assert release(winner, outside=forbidding).is_file()


def test_a_forbidden_model_inside_somebody_elses_merge_stops_the_release(winner: Path) -> None:
    hidden = "ab" * 32
    models = {hidden: {"name": "hidden.ckpt", "legacy_hash": "12345678"}}
    y = winner.parent / "y.safetensors"
    write(y, 8, {"sd_merge_models": json.dumps(models)})
    out = winner.parent / "again.safetensors"
    merge_files({"y": y}, "y", out, "float16")
    forbidding = replace(
        ingredients(winner.parent)["general"],
        path="no/such/file",
        sha256=hidden,
        merging_allowed=False,
    )
    with pytest.raises(ValueError, match=r"'hidden'.*named by the program that merged one of the"):
        release(out, hidden=forbidding)


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ('{"ab": {"name": "hidden.ckpt"}}', r"'hidden.ckpt' \(sd_merge_models names it by 'ab'"),
        ('["hidden.ckpt"]', "sd_merge_models is no JSON object"),
        ("hidden.ckpt", "sd_merge_models is no JSON object"),
        ('{"null": 7}', "sd_merge_models names it by 'null'"),
    ],
)
def test_what_nobody_can_read_of_somebody_elses_merge_stops_the_release_until_it_is_licensed(
    winner: Path, models: str, words: str
) -> None:
    y = write(winner.parent / "y.safetensors", 8, {"sd_merge_models": models})
    out = winner.parent / "again.safetensors"
    merge_files({"y": y}, "y", out, "float16")
    with pytest.raises(ValueError, match=words) as refusal:
        release(out)
    digits = re.findall(r"\b[0-9a-f]{64}\b", str(refusal.value))
    assert len(digits) == 1
    licensed = replace(
        ingredients(winner.parent)["general"], path="no/such/file", sha256=digits[0].upper()
    )
    assert release(out, hidden=licensed).is_file()
    with pytest.raises(ValueError, match=r"may not be merged.*'hidden'"):
        release(out, hidden=replace(licensed, merging_allowed=False))


@pytest.mark.parametrize("is_forbidden", [False, True])
def test_a_recipe_that_another_merger_copied_from_a_parent_is_not_believed(
    winner: Path, is_forbidden: bool
) -> None:
    """A1111 copies its parents' metadata, and adds the two files that it merged."""
    folder = winner.parent
    hidden = write(folder / "hidden.safetensors", 9)
    models = {digest(path): {"name": path.name} for path in (winner, hidden)}
    metadata = {**read_header(winner).metadata, "sd_merge_models": json.dumps(models)}
    del metadata[TENSORS_HASH]  # which would give it away
    stranger = write(folder / "stranger.safetensors", 5, metadata)
    assert read_lineage(metadata).recipe is None
    with pytest.raises(ValueError, match="tells no ancestry"):
        release(stranger)
    out = folder / "again.safetensors"
    merge_files({"s": stranger}, "s", out, "float16")
    licensed = replace(ingredients(folder)["general"], path=str(stranger))
    if is_forbidden:
        forbidding = replace(licensed, path=str(hidden), merging_allowed=False)
        with pytest.raises(ValueError, match=r"may not be merged.*'forbidden'"):
            release(out, stranger=licensed, forbidden=forbidding)
    else:
        with pytest.raises(ValueError, match=rf"no licence is known.*{digest(stranger)}"):
            release(out)
        assert release(out, stranger=licensed).is_file()


@pytest.fixture(params=["as it is", "without the hash"])
def copy(winner: Path, request: pytest.FixtureRequest) -> Path:
    """Be another program that merges the winner with a stranger under its metadata."""
    metadata = dict(read_header(winner).metadata)
    if request.param == "without the hash":
        del metadata[TENSORS_HASH]
    path = winner.parent / "copy.safetensors"
    save_file({KEY: torch.full((2, 2), 5.0, dtype=torch.float16)}, path, metadata)
    return path


def test_a_recipe_copied_without_a_word_gives_itself_away_by_its_tensors(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy.parent
    doubt = r"its recipe (is another file's|names no hash)"
    with pytest.raises(ValueError, match=r"copy\.safetensors: its (tensors are not|recipe names)"):
        release(copy)
    with pytest.raises(SystemExit):
        main(["verify", str(copy)])
    merge_main(["inspect", str(copy)])
    assert re.search(f"made of nobody knows what: {doubt}", capsys.readouterr().out)
    out = folder / "again.safetensors"
    merge_main(["--expression", "c", f"c={copy}", "--out", str(out)])
    assert re.search(rf"Warning: \S*copy\.safetensors: {doubt}", capsys.readouterr().err)
    with pytest.raises(ValueError, match=rf"'c' \({doubt}.*\), {digest(copy)}"):
        release(out)
    licensed = replace(ingredients(folder)["general"], path=str(copy))
    assert release(out, other=licensed).is_file()
    main(["verify", str(folder / "release/vodka-1.0.safetensors")])
    assert re.search(doubt, capsys.readouterr().out)
    hidden = replace(ingredients(folder)["realistic"], merging_allowed=False)
    with pytest.raises(ValueError, match=r"may not be merged.*'realistic'"):
        release(out, other=licensed, realistic=hidden)


def test_verify_says_so_of_a_file_that_names_no_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "other.safetensors", 1)
    with pytest.raises(SystemExit, match=r"other\.safetensors: its metadata name no hash"):
        main(["verify", str(path)])


def test_training_goes_on_from_a_copied_recipe_as_from_a_model_of_others(copy: Path) -> None:
    parent = read_parent(copy, read_header(copy).metadata)
    lineage = read_lineage(made_from({"kind": "train", "run": "512"}, {"base": parent}))
    assert lineage.inputs(digest(copy)) == {}
    assert lineage.ancestors[digest(copy)].unreadable
    assert doubt_warning(copy, parent)


@pytest.mark.parametrize("why", [COPIED, UNPROVEN])
def test_a_doubt_takes_less_room_in_a_header_than_the_shortest_recipe(why: str) -> None:
    """A merge leaves room before it has hashed its inputs."""
    recipe = json.dumps({"inputs": {"": "0" * 64}}, separators=(",", ":"))
    assert len(f'"unreadable":"{why}"') <= len(f'"recipe":{recipe}')


def test_trained_weights_name_the_hash_of_their_tensors(winner: Path) -> None:
    for name in ("512", "hybrid"):
        path = winner.parent / f"{name}.safetensors"
        metadata = read_header(path).metadata
        assert metadata[TENSORS_HASH] == f"0x{hash_tensors(path)}"
    assert TENSORS_HASH not in read_header(winner.parent / "x.safetensors").metadata


@pytest.mark.parametrize("step", ['{"type": "webui"}', "0.5 a + 0.5 b", "[]"])
def test_a_recipe_beside_another_program_s_is_not_believed_whoever_it_names(
    winner: Path, step: str
) -> None:
    released = read_header(release(winner)).metadata
    assert read_lineage(released).recipe
    lineage = read_lineage({**released, "sd_merge_recipe": step})
    assert lineage.recipe is None
    assert lineage.ancestors == read_lineage(released).ancestors


def test_a_release_is_believed_though_it_names_its_ancestors_for_others_too(winner: Path) -> None:
    metadata = read_header(release(winner)).metadata
    assert "sd_merge_models" in metadata
    assert read_lineage(metadata).inputs() == read_lineage(read_header(winner).metadata).inputs()


def test_a_source_without_a_licence_stops_the_release(winner: Path) -> None:
    known = ingredients(winner.parent)
    del known["general"]
    with pytest.raises(ValueError, match="no licence is known for 1 of its sources") as refusal:
        run(winner, winner.parent / "release", winner.parent / "r.json", PARAMS, known)
    assert f"through y, SHA-256 {digest(winner.parent / 'y.safetensors')}" in str(refusal.value)


def test_what_covers_a_merge_covers_what_it_was_made_of(winner: Path) -> None:
    """A licence stated for the hybrid settles what lies behind it."""
    known = ingredients(winner.parent)
    del known["base-model"]
    hybrid = replace(known["general"], path=str(winner.parent / "hybrid.safetensors"))
    known["earlier"] = hybrid
    run(winner, winner.parent / "release", winner.parent / "r.json", PARAMS, known)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: write(f / "cocktail.safetensors", 1), "tells no ancestry"),
        (lambda f: (f / "cocktail.safetensors").unlink(), "no such file"),
        (lambda f: (f / "x.safetensors").unlink(), "ingredient 'realistic' is missing"),
        (lambda f: (f / "cocktail.safetensors").write_bytes(b"PK" + bytes(50)), "a pickle"),
    ],
)
def test_bad_input_is_refused(winner: Path, change: Callable[[Path], Any], words: str) -> None:
    change(winner.parent)
    with pytest.raises((ValueError, OSError), match=words):
        release(winner)


def test_a_changed_byte_is_found(winner: Path) -> None:
    content = bytearray(winner.read_bytes())
    content[-1] ^= 1
    winner.write_bytes(content)
    with pytest.raises(ValueError, match="not those that its metadata names"):
        release(winner)


@pytest.mark.parametrize(
    ("name", "report", "words"),
    [
        ("cocktail", "release.json", "is also the winner"),
        ("x", "release.json", "is also the ingredient 'realistic'"),
        ("new", "cocktail.safetensors", "is also the winner"),
        ("new", "link", "is also the winner"),
        ("new", "new.safetensors", "is also the new new.safetensors"),
        ("new", "folder", "folder: is no file"),
        ("new", "y.safetensors/release.json", "y.safetensors is no folder"),
    ],
)
def test_a_release_replaces_nothing_that_it_is_made_of_and_knows_so_before_the_work(
    winner: Path, name: str, report: str, words: str
) -> None:
    folder = winner.parent
    (folder / "folder").mkdir()
    (folder / "link").symlink_to(winner)
    before = {path: digest(path) for path in folder.glob("*.*")}
    with pytest.raises((ValueError, OSError), match=words):
        run(winner, folder, folder / report, replace(PARAMS, name=name), ingredients(folder))
    assert {path: digest(path) for path in folder.glob("*.*")} == before


def test_another_version_of_an_ingredient_is_found(winner: Path) -> None:
    x = replace(ingredients(winner.parent)["realistic"], sha256="0" * 64)
    with pytest.raises(ValueError, match="Is it another version"):
        release(winner, realistic=x)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"name": "a/b"}, "cannot name a file"), ({"date": "yesterday"}, "is no date")],
)
def test_bad_params_are_refused(change: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(PARAMS, **change)  # type: ignore[arg-type]


# What the stages before know


@pytest.fixture
def whole(tmp_path: Path, tiny_sd: TinySD) -> tuple[Path, Evidence]:
    """Train and merge real networks, draw with them, and choose."""
    base = save(tiny_sd, tmp_path / "base.safetensors")
    parent = read_parent(base, read_header(base).metadata)
    recipe = {
        "kind": "train",
        "run": "512",
        "params": {"learning_rate": 0.1, "batch_size": 4},
        "pictures": {"train": 524, "validation": 93},
    }
    trained = tmp_path / "512.safetensors"
    save_single_file(
        trained,
        tiny_sd.unet,
        tiny_sd.vae,
        tiny_sd.text_encoder,
        {**made_from(recipe, {"base": parent}), "epoch": "40"},
    )
    winner = tmp_path / "winner.safetensors"
    merge_files({"a": trained, "b": base}, "0.5*a + 0.5*b", winner, "float16", name="row1")
    cells = tmp_path / "cells"
    entries = []
    for i, (side, prompt) in enumerate([(16, "small cat"), (32, "cat"), (32, "red | apple")]):
        file = f"row1/{i:04}.png"
        (cells / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), (i, 0, 0)).save(cells / file)
        entries.append(Entry("row1", prompt, 7, side, side, "0" * 64, file, None))
    manifest = {
        "group": "final",
        "models": [{"name": "row1", "weights": "0" * 64}],
        "settings": {},
        "cells": [asdict(entry) for entry in entries],
    }
    write_json(cells / "cells.json", manifest)
    choice = {
        "choice": "row1",
        "reason": "Compared with bloody: +1.",
        "candidates": {"row1": {"score": 32.5, "score_low": 31}},
        "reference": {"name": "bloody", "score": 32.25, "score_lead": 0.25},
    }
    write_json(tmp_path / "final.json", choice)
    older = tmp_path / "older.safetensors"
    write_single_file(older, load_file(base), {"note": "another file"}, torch.float16)
    inputs = {"a": base, "b": older}
    merge_files(inputs, "0.2*a + 0.8*b", tmp_path / "bloody.safetensors", "float16", name="bloody")
    for name, count in (("train", 524), ("validation", 93)):
        pq.write_table(pa.table({"id": list(range(count))}), tmp_path / f"{name}.parquet")
    write_json(tmp_path / "filter.json", {"read": 20500, "kept": 617, "dropped": {"a": 1}})
    write_json(tmp_path / "download.json", {"fetched": 617, "yield": 1.0})
    bloody = tmp_path / "bloody.safetensors"
    return winner, Evidence(cells, tmp_path / "final.json", tmp_path, tmp_path, bloody)


def release_whole(whole: tuple[Path, Evidence], sd: TinySD) -> Path:
    winner, evidence = whole
    known = {
        "base": Ingredient(
            path=str(winner.parent / "base.safetensors"),
            licence="MIT",
            merging_allowed=True,
            source="here",
            attribution="us",
        )
    }
    out = winner.parent / "release"
    run(winner, out, winner.parent / "release.json", PARAMS, known, sd.config, evidence)
    return out / f"{PARAMS.name}.safetensors"


def test_the_card_shows_pictures_reason_training_and_data(
    whole: tuple[Path, Evidence], tiny_sd: TinySD
) -> None:
    path = release_whole(whole, tiny_sd)
    card = path.with_suffix(".md").read_text()
    for words in (
        "![cat, seed 7](pictures/01.png)",
        "Compared with bloody: +1.",
        "| param | 512, epoch 40 |",
        "| pictures to train | 524 |",
        "| pictures to validate | 93 |",
        "| learning_rate | 0.1 |",
        "| filter | kept | 617 |",
        "| download | fetched | 617 |",
        "| split | trained on | 524 |",
        "| split | held out | 93 |",
    ):
        assert words in card, words
    assert "small cat" not in card, "the largest size alone is shown"
    assert (path.parent / "pictures/01.png").is_file()


def test_the_card_says_what_changed_against_the_reference(
    whole: tuple[Path, Evidence], tiny_sd: TinySD
) -> None:
    card = release_whole(whole, tiny_sd).with_suffix(".md").read_text()
    _, _, section = card.partition("## What changed against the reference cocktail\n")
    section = section.partition("\n## ")[0]
    for words in (
        "The reference is **bloody** (",
        "`0.2*a + 0.8*b`",
        "| b | 0 | 0.8 | -0.8 |",
        "| 512, epoch 40 | 0.5 | 0 | +0.5 |",
        "| base | 0.5 | 0.2 | +0.3 |",
        "| score | 32.5 | 32.25 | +0.25 |",
    ):
        assert words in section, (words, section)
    whole[1].reference.unlink()
    with pytest.raises(FileNotFoundError, match="reference cocktail"):
        release_whole(whole, tiny_sd)


def test_a_reference_that_tells_nothing_is_said_to(
    whole: tuple[Path, Evidence], tiny_sd: TinySD
) -> None:
    save(tiny_sd, whole[1].reference)
    card = release_whole(whole, tiny_sd).with_suffix(".md").read_text()
    assert "does not tell what it was made of" in card


def test_the_card_names_what_another_program_merged(winner: Path) -> None:
    models = {"ab" * 32: {"name": "hidden.ckpt", "legacy_hash": "12345678"}}
    y = write(winner.parent / "y.safetensors", 8, {"sd_merge_models": json.dumps(models)})
    out = winner.parent / "cocktail.safetensors"
    merge_files({"y": y}, "y", out, "float16")
    card = release(out).with_suffix(".md").read_text()
    assert "Named by the program that merged one of the inputs:\n\n- **hidden.ckpt** (abab" in card


def test_a_stranger_s_words_stay_words_in_the_card_and_in_verify(
    winner: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "a|b <script>x</script> [here](https://evil.example) www.evil.example `code`"
    recipe = {"type": "webui-supermerger", "weights_alpha": "`|`", "multiplier": None}
    models = {"ab" * 32: {"name": evil, "sd_merge_recipe": recipe}, "no hash": {"name": evil}}
    metadata = {"sd_merge_models": json.dumps(models), "sd_merge_recipe": json.dumps(recipe)}
    y = write(winner.parent / "y.safetensors", 8, metadata)
    out = winner.parent / "cocktail.safetensors"
    merge_files({"y": y}, "y", out, "float16")
    entry = json.dumps({"no hash": {"name": evil}})
    known = replace(
        ingredients(winner.parent)["general"],
        path="no/such/file",
        sha256=sha256(entry.encode()).hexdigest(),
    )
    path = release(out, strange=known)
    card = path.with_suffix(".md").read_text()
    assert r"a|b \<script\>x\</script\> \[here\](https\://evil.example) www\.evil.exam" in card
    for words in ("<script", "[here]", "https://evil", "www.evil"):
        assert not re.search(rf"(?<!\\){re.escape(words)}", card), words
    assert "by another program: `` {" in card
    assert '"type": "webui-supermerger"' in card
    main(["verify", str(path)])
    assert '"type": "webui-supermerger"' in capsys.readouterr().out
    merge_main(["inspect", str(path)])
    assert "by another program: {" in capsys.readouterr().out


def test_a_recipe_without_a_dtype_is_released_and_one_without_inputs_is_refused(
    winner: Path,
) -> None:
    header = read_header(winner)
    recipe = json.loads(header.metadata[RECIPE])
    del recipe["dtype"]
    del header.metadata[TENSORS_HASH]
    write(winner, 1, {**header.metadata, RECIPE: json.dumps(recipe)})
    found = json.loads(read_header(release(winner)).metadata["sd_merge_recipe"])
    assert found["save_as_half"] is False
    del recipe["inputs"]["x"]
    write(winner, 1, {**header.metadata, RECIPE: json.dumps(recipe)})
    with pytest.raises(ValueError, match="have no inputs"):
        release(winner)


def test_a_baked_vae_and_an_inpainting_model_are_told_in_a1111_s_keys(winner: Path) -> None:
    folder = winner.parent
    conv_in = "model.diffusion_model.input_blocks.0.0.weight"
    vae = "first_stage_model.decoder.conv_in.weight"
    for name, channels in (("x", 9), ("y", 4)):
        tensors = {conv_in: torch.ones(4, channels, 3, 3), vae: torch.ones(2)}
        write_single_file(folder / f"{name}.safetensors", tensors, {}, torch.float16)
    inputs = {name: folder / f"{name}.safetensors" for name in "xy"}
    merge_files(inputs, "parts(0.5*x + 0.5*y, vae=y)", folder / "cocktail.safetensors", "float16")
    recipe = json.loads(read_header(release(winner)).metadata["sd_merge_recipe"])
    assert recipe["is_inpainting"] is True
    assert recipe["bake_in_vae"] == "y"
    for expression, is_inpainting in (("parts(y, unet=x)", True), ("parts(x, unet=y)", False)):
        merge_files(inputs, expression, folder / "cocktail.safetensors", "float16")
        recipe = json.loads(read_header(release(winner)).metadata["sd_merge_recipe"])
        assert recipe["is_inpainting"] == is_inpainting


def test_the_thumbnail_is_a_picture_of_the_grid(
    whole: tuple[Path, Evidence], tiny_sd: TinySD
) -> None:
    metadata = read_header(release_whole(whole, tiny_sd)).metadata
    kind, _, content = metadata["modelspec.thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (32, 32)


def test_the_diffusers_folder_holds_the_same_weights(
    whole: tuple[Path, Evidence], tiny_sd: TinySD
) -> None:
    from diffusers import StableDiffusionPipeline

    path = release_whole(whole, tiny_sd)
    pipeline = StableDiffusionPipeline.from_pretrained(
        path.parent / "diffusers", local_files_only=True, dtype=torch.float32
    )
    ours = load_models(path, tiny_sd.config)
    assert_same_weights(ours.unet, pipeline.unet)
    assert_same_weights(ours.text_encoder, pipeline.text_encoder)


def test_whoever_may_read_the_released_file_may_read_all_of_the_release(
    whole: tuple[Path, Evidence], tiny_sd: TinySD
) -> None:
    path = release_whole(whole, tiny_sd)
    files = [file for file in path.parent.rglob("*") if file.is_file()]
    modes = {str(f.relative_to(path.parent)): oct(f.stat().st_mode & 0o777) for f in files}
    assert set(modes.values()) == {modes[path.name]}, modes


def test_verify_agrees_with_what_was_released_and_finds_a_changed_byte(
    whole: tuple[Path, Evidence], tiny_sd: TinySD, capsys: pytest.CaptureFixture[str]
) -> None:
    path = release_whole(whole, tiny_sd)
    main(["verify", str(path)])
    told = capsys.readouterr().out
    assert "7 figures of hashes.json agree" in told
    assert "- `a`: **512, epoch 40**, trained" in told
    assert "base" in told
    for place in (-1, 20):  # of a tensor, of the header
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(SystemExit, match=r"changed since its release|damaged"):
            main(["verify", str(path)])
        content[place] ^= 1
        path.write_bytes(content)


def test_a_copy_with_another_name_or_alone_is_verified_too(
    whole: tuple[Path, Evidence],
    tiny_sd: TinySD,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = release_whole(whole, tiny_sd)
    renamed = path.with_name("renamed.safetensors")
    shutil.copyfile(path, renamed)
    main(["verify", str(renamed)])
    assert "7 figures of hashes.json agree" in capsys.readouterr().out
    content = bytearray(renamed.read_bytes())
    at = content.index(b"CreativeML")  # in the metadata, which the tensors' hash does not cover
    content[at : at + 1] = b"K"
    renamed.write_bytes(content)
    with pytest.raises(SystemExit, match="knows neither its name nor its SHA-256"):
        main(["verify", str(renamed)])
    alone = tmp_path / "alone.safetensors"
    shutil.copyfile(path, alone)
    main(["verify", str(alone)])
    told = capsys.readouterr().out
    assert "no hashes.json beside it" in told
    assert "- `a`: **512, epoch 40**, trained" in told
    content = bytearray(alone.read_bytes())
    content[-1] ^= 1
    alone.write_bytes(content)
    with pytest.raises(SystemExit, match="tensors are not those that"):
        main(["verify", str(alone)])
    with pytest.raises(SystemExit, match=r"nothing\.safetensors: no such file"):
        main(["verify", str(tmp_path / "nothing.safetensors")])
    with pytest.raises(SystemExit, match="is a folder"):
        main(["verify", str(tmp_path)])


def test_verify_names_hashes_that_are_no_json_and_tells_users_how_to_call_it(
    winner: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = release(winner)
    (path.parent / "hashes.json").write_text("{")
    with pytest.raises(SystemExit, match=r"hashes\.json: not readable as JSON"):
        main(["verify", str(path)])
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    told = capsys.readouterr().out
    assert "verify [-h] FILE" in told
    assert "Raises" not in told


@pytest.mark.parametrize(("trained_for", "told"), [("epsilon", "epsilon"), ("v_prediction", "v")])
def test_a_release_says_what_its_unet_was_trained_to_predict(trained_for: str, told: str) -> None:
    trained = {"kind": "train", "run": "512", "params": {"prediction_type": trained_for}}
    merged = {"kind": "merge", "expression": "0.2*a + 0.8*b", "inputs": {"a": "1", "b": "2"}}
    ancestors = {"1": Ancestor("a", "", trained), "2": Ancestor("stranger", "")}
    assert prediction_type(Lineage(merged, ancestors)) == told
    assert prediction_type(Lineage(trained)) == told


@pytest.mark.parametrize(
    ("expression", "told", "is_warned"),
    [
        ("0.99*e + 0.01*v", "epsilon", True),
        ("0.4*e + 0.6*v", "v", True),
        ("0.5*e + 0.5*v", "v", True),
        ("e + 0*v", "epsilon", False),
        ("e + 0.5*(v - w)", "epsilon", False),
    ],
)
def test_a_merge_of_two_objectives_is_told_by_the_larger_share_and_warned_of(
    winner: Path, capsys: pytest.CaptureFixture[str], expression: str, told: str, is_warned: bool
) -> None:
    folder = winner.parent
    base = folder / "base.safetensors"
    parent = read_parent(base, read_header(base).metadata)
    inputs = {}
    for name, kind in (("e", "epsilon"), ("v", "v_prediction"), ("w", "v_prediction")):
        params = {"prediction_type": kind}
        recipe = made_from({"kind": "train", "run": name, "params": params}, {"base": parent})
        if name in expression:
            inputs[name] = write(folder / f"{name}.safetensors", ord(name), recipe)
    out = folder / "both.safetensors"
    merge_files(inputs, expression, out, "float16")
    released = release(out)
    assert read_header(released).metadata["modelspec.prediction_type"] == told
    assert ("trained to predict different things" in capsys.readouterr().err) == is_warned


@pytest.mark.parametrize(
    "content", ["[]", "7", "null", '{"vodka-1.0.safetensors": []}', '{"a": 7}']
)
def test_verify_names_hashes_that_are_none(winner: Path, content: str) -> None:
    path = release(winner)
    (path.parent / "hashes.json").write_text(content)
    with pytest.raises(SystemExit, match=r"hashes\.json: not the hashes of a release"):
        main(["verify", str(path)])


def test_room_for_the_diffusers_folder_too_is_known_before_the_work(
    whole: tuple[Path, Evidence], tiny_sd: TinySD, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = whole[0].stat().st_size
    usage = type("Usage", (), {"free": 1.5 * size})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="2 copies of the weights take"):
        release_whole(whole, tiny_sd)
    assert not list(whole[0].parent.rglob("vodka-1.0*"))


def test_a_placeholder_is_not_published(tmp_path: Path) -> None:
    params = replace(PARAMS, author="to be filled in")
    with pytest.raises(ValueError, match=r"release\.author is still 'to be filled in'"):
        run(tmp_path / "w.safetensors", tmp_path, tmp_path / "r.json", params, {})


def test_a_winner_that_drew_nothing_is_named(whole: tuple[Path, Evidence], tiny_sd: TinySD) -> None:
    write_json(whole[1].choice, {"choice": "row9", "reason": "?"})
    with pytest.raises(ValueError, match=r"no picture by 'row9'.*holds row1"):
        release_whole(whole, tiny_sd)


@pytest.mark.parametrize(
    "which",
    ["reference", "choice", "cells/cells.json", "reports/filter.json", "split/train.parquet"],
)
@pytest.mark.parametrize("content", [None, "[]", "", "cut"])
def test_evidence_that_is_missing_or_damaged_is_named_before_anything_is_written(
    whole: tuple[Path, Evidence], tiny_sd: TinySD, which: str, content: str | None
) -> None:
    field, _, name = which.partition("/")
    path = getattr(whole[1], field) / name if name else getattr(whole[1], field)
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, OSError), match=re.escape(str(path))):
        release_whole(whole, tiny_sd)
    assert not (whole[0].parent / "release").exists()


def test_a_choice_that_names_none_is_told_by_its_file(
    whole: tuple[Path, Evidence], tiny_sd: TinySD
) -> None:
    write_json(whole[1].choice, {"choice": "row1"})
    with pytest.raises(ValueError, match=r"choice.*: not the report .* without 'reason'"):
        release_whole(whole, tiny_sd)


def test_it_runs_from_the_command_line(whole: tuple[Path, Evidence], tiny_sd: TinySD) -> None:
    winner, evidence = whole
    folder = winner.parent
    params = {
        "release": {
            **{key: getattr(PARAMS, key) for key in PARAMS.__slots__},
            "tags": list(PARAMS.tags),
        },
        "ingredients": {
            "base": {
                "path": str(folder / "base.safetensors"),
                "licence": "MIT",
                "merging_allowed": True,
                "source": "here",
                "attribution": "us",
            }
        },
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    options = {
        "--weights": winner,
        "--config": tiny_sd.config,
        "--cells": evidence.cells,
        "--choice": evidence.choice,
        "--reports": evidence.reports,
        "--split": evidence.split,
        "--reference": evidence.reference,
        "--out": folder / "release",
        "--report": folder / "release.json",
        "--params": folder / "params.yaml",
    }
    command = [str(word) for option in options.items() for word in option]
    done = subprocess.run(
        [sys.executable, "-m", "stages.release", *command],
        cwd=ROOT,
        env={**os.environ, "TRACEBACK": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Released" in done.stdout
    assert (folder / "release" / "vodka-1.0.safetensors").is_file()
