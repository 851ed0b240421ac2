"""Merging: expressions, sums of files, and what is refused."""

import json
import os
import pickle
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from stages import merge, release
from stages.diffusion.header import read_header
from stages.diffusion.model import write_single_file
from stages.diffusion.single_file import POSITION_IDS
from stages.lineage.ancestry import ANCESTRY, RECIPE, made_from, read_lineage, read_parent
from stages.lineage.digests import TENSORS_HASH
from stages.merge import main
from stages.merging.blocks import sum_warning
from stages.merging.expression import MAX_CHARS, parse_expression
from stages.merging.files import POSITIONS, merge_files
from stages.merging.text import format_sum, format_weight
from stages.releases.card import ancestor_tree
from stages.releases.shares import ancestor_shares
from tests.test_single_file import save
from tests.tiny_sd import TinySD, tiny_sd

__all__ = ["tiny_sd"]  # a fixture is found by its name

ROOT = Path(__file__).parent.parent
KEY = "model.diffusion_model.out.2.weight"
A = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
B = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
C = torch.tensor([[0.5, 0.25], [-1.0, 8.0]])

weights = st.fractions(min_value=-2, max_value=2, max_denominator=50)
names = st.sampled_from("abcde")


def write(path: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.float16) -> Path:
    write_single_file(path, tensors, {}, dtype)
    return path


def abc(folder: Path, dtype: torch.dtype = torch.float16) -> dict[str, Path]:
    tensors = {"a": A, "b": B, "c": C}
    return {n: write(folder / f"{n}.safetensors", {KEY: t}, dtype) for n, t in tensors.items()}


def noise_files(folder: Path, dtype: torch.dtype, count: int = 3) -> dict[str, Path]:
    """Write files of a few tensors, some longer than the chunks that tests use."""
    paths = {}
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        shapes = {KEY: (37, 3), "model.diffusion_model.out.0.bias": (5,), POSITIONS: (7, 4)}
        tensors = {
            key: torch.randn(shape, generator=generator).mul_(0.05).to(dtype)
            for key, shape in shapes.items()
        }
        name = "abc"[i]
        paths[name] = write(folder / f"{name}.safetensors", tensors, dtype)
    return paths


def merged(inputs: Mapping[str, Path], expression: str, **options: Any) -> dict[str, torch.Tensor]:
    out = next(iter(inputs.values())).with_name("out.safetensors")
    merge_files(inputs, expression, out, options.pop("dtype", "float32"), **options)
    return load_file(out)


# Expressions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", {"a": "1"}),
        ("0.6*a + 0.2*b + 0.2*c", {"a": "3/5", "b": "1/5", "c": "1/5"}),
        ("a + 0.5*(b - c)", {"a": "1", "b": "1/2", "c": "-1/2"}),
        ("0.5*(0.5*a + 0.5*b) + 0.5*b", {"a": "1/4", "b": "3/4"}),
        ("a/3 + b/3 + c/3", {"a": "1/3", "b": "1/3", "c": "1/3"}),
        ("-a + 2*(a)", {"a": "1"}),
        ("a - - b - b", {"a": "1", "b": "0"}),
        ("b*.5+(1 - 1/2)*a", {"b": "1/2", "a": "1/2"}),
        ("vodka_v3 * 1e0", {"vodka_v3": "1"}),
        ("a - (b - c) - (c - b)", {"a": "1", "b": "0", "c": "0"}),
        ("(a + b) / (1 + 1)", {"a": "1/2", "b": "1/2"}),
    ],
)
def test_an_expression_is_multiplied_out_exactly(text: str, expected: dict[str, str]) -> None:
    found = parse_expression(text)
    assert found == {name: Fraction(weight) for name, weight in expected.items()}
    assert list(found) == list(expected)  # the order of the sum
    assert sum_warning(text, found) is None


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("0.6*a +* b", 8, "expected a number, a name or '(', got '*'"),
        ("(a + b", 1, "never closed"),
        ("a + b)", 6, "or the end, got ')'"),
        ("(a b)", 4, "or ')', got 'b'"),
        ("2a", 2, "got 'a'"),
        ("", 1, "got the end"),
        ("0.5", 1, "names no model"),
        ("a + 1", 3, "a model + a number"),
        ("a * b", 3, "models are multiplied"),
        ("1 / a", 3, "divides by numbers"),
        ("a / (1 - 1)", 3, "division by zero"),
        ("0.5*a & b", 7, "expected a name"),
        ("__import__('os')", 1, "no method '__import__'"),
        ("slerp(a, b)", 1, "slerp lacks 't': slerp(a, b, t)"),
        ("slerp(a, b, 2)", 13, "'t' is 2, beyond 0 to 1"),
        ("slerp(a, b, b)", 13, "'t' is a number, got a model"),
        ("slerp(1, b, 0.5)", 7, "'a' is a model, got a number"),
        ("slerp(a, b, 0.5, 1)", 18, "too many arguments"),
        ("slerp(a, b, t=1, t=1)", 18, "takes no 't' here"),
        ("ties(a, b)", 9, "expected '[', got 'b'"),
        ("ties(a, [b", 11, "expected ',' or ']', got the end"),
        ("mbw(a, b, [0.5, 0.5])", 11, "2 block weights; 26 are wanted"),
        ("mbw(a, b, GRAD_X)", 11, "no preset 'GRAD_X'; there are GRAD_V"),
        ("dare(a, b, 0.5, 0.9)", 17, "'seed' is 0.9, not a whole number"),
        ("slerp(1e6*1e6*a, b, 0.5)", 7, "beyond 1,000,000"),
        ("parts(a, clip=b)", 10, "takes no 'clip' here"),
        ("1e999999999*a", 1, "no weight is as large"),
        ("1e29*a", 1, "beyond 1,000,000"),
        ("(" * 5000, 101, "more than 100 levels"),
        ("-" * 5000, 101, "more than 100 levels"),
        ("0,5*a", 2, "got ','"),
    ],
)
def test_a_mistake_is_shown_where_it_is(text: str, position: int, words: str) -> None:
    with pytest.raises(ValueError, match=f"position {position}:") as refusal:
        parse_expression(text)
    message, shown, caret = str(refusal.value).split("\n")
    assert words in message
    assert shown == "  " + text
    assert caret == " " * (position + 1) + "^"


@given(st.lists(st.sampled_from([*"ab01.e+-*/()[],= \n_", "slerp(", "mbw(", "ties("]), max_size=30))
def test_any_text_is_parsed_or_refused_with_a_position(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        weights = parse_expression(text)
    except ValueError as error:
        assert "position" in str(error)  # noqa: PT017  most texts are refused, some are not
    else:
        assert parse_expression(format_sum(weights)) == weights


@pytest.mark.parametrize(
    "text",
    [
        "mbw(a, b, [HUGE])",
        "slerp(a, b, HUGE)",
        "dare(a, b, HUGE)",
        "HUGE * a",
        "a / (HUGE)",
        "0 * (HUGE) * a",
        "a + 2*(b * HUGE)",
    ],
)
def test_numbers_that_multiply_beyond_every_float_are_refused_where_they_do(text: str) -> None:
    huge = " * ".join(["1e30"] * 20)
    with pytest.raises(ValueError, match=r"position \d+: no weight is as large"):
        parse_expression(text.replace("HUGE", huge))


@pytest.mark.parametrize("numbers", [0, 1])
def test_a_sum_of_many_terms_is_read_in_time_that_grows_with_it_alone(numbers: int) -> None:
    """Whether or not it is multiplied by as many numbers."""

    def seconds(terms: int) -> float:
        text = " + ".join(f"0.1*m{i}" for i in range(terms))
        text = f"({text}){' * 1 / 1' * numbers * terms}"
        start = time.process_time()
        assert len(parse_expression(text)) == terms
        return time.process_time() - start

    assert seconds(4_000) < 10 * max(seconds(1_000), 0.02)  # it was 16 times, and minutes


def test_an_endless_expression_is_refused() -> None:
    with pytest.raises(ValueError, match="characters"):
        parse_expression("a+" * MAX_CHARS)


@given(st.lists(st.tuples(names, weights), min_size=1), weights)
def test_parsing_is_linear(terms: list[tuple[str, Fraction]], factor: Fraction) -> None:
    text = " + ".join(f"({weight})*{name}" for name, weight in terms)
    expected: dict[str, Fraction] = {}
    for name, weight in terms:
        expected[name] = expected.get(name, Fraction()) + weight
    assert parse_expression(text) == expected
    scaled = {name: factor * weight for name, weight in expected.items()}
    assert parse_expression(f"({factor})*({text})") == scaled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.6*a + 0.6*b", r"sum to 1\.2, not to 1.*\(0\.6\*a \+ 0\.6\*b\) / 1\.2"),
        ("0.5*(b - c)", "sum to 0, not to 1.*must exceed"),
        ("a/3 + b/3", "sum to 2/3"),
        ("a + b + 0.1*c", r"sum to 2\.1"),
    ],
)
def test_weights_that_do_not_sum_to_one_are_told_with_their_sum(text: str, words: str) -> None:
    warning = sum_warning(text, parse_expression(text))
    assert warning
    assert re.search(words, warning)


@given(weights)
def test_a_weight_is_written_so_that_it_reads_the_same(weight: Fraction) -> None:
    assert Fraction(format_weight(weight)) == weight


# Sums


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0.5*a + 0.5*b", [[5.5, 11.0], [16.5, 22.0]]),
        ("a + 0.5*(b - c)", [[5.75, 11.875], [18.5, 20.0]]),
        ("0.5*a + 0.25*b + 0.25*c", [[3.125, 6.0625], [8.75, 14.0]]),
        ("b + a - a", [[10.0, 20.0], [30.0, 40.0]]),
    ],
)
def test_files_are_summed_by_weight(
    tmp_path: Path, expression: str, expected: list[list[float]]
) -> None:
    used = {name: path for name, path in abc(tmp_path).items() if name in expression}
    assert merged(used, expression)[KEY].tolist() == expected


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_merge_equals_plain_float32_arithmetic_rounded_once(
    tmp_path: Path, stored: torch.dtype, dtype: torch.dtype
) -> None:
    inputs = noise_files(tmp_path, stored)
    found = merged(
        inputs, "0.6*a + 0.2*b + 0.2*c", dtype=str(dtype).removeprefix("torch."), chunk_elements=16
    )
    a, b, c = (load_file(path) for path in inputs.values())
    for key in set(a) - {POSITION_IDS}:
        plain = 0.6 * a[key].float() + 0.2 * b[key].float() + 0.2 * c[key].float()
        assert found[key].dtype == dtype
        assert torch.equal(found[key], plain.to(dtype)), key
    assert len(found) == len(a) + 1  # the position ids that follow from the length


@given(
    st.lists(st.floats(-4, 4, width=16), min_size=8, max_size=8),
    st.fractions(min_value=0, max_value=1, max_denominator=64),
)
def test_a_merge_lies_between_its_inputs(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], share: Fraction
) -> None:
    folder = tmp_path_factory.mktemp("between")
    a, b = torch.tensor(values).view(2, 2, 2)
    inputs = {
        "a": write(folder / "a.safetensors", {KEY: a}),
        "b": write(folder / "b.safetensors", {KEY: b}),
    }
    found = merged(inputs, f"({1 - share})*a + ({share})*b")[KEY]
    exact = (1 - float(share)) * a.double() + float(share) * b.double()
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=1e-6)
    assert (found <= torch.maximum(a, b) + 1e-6).all()
    assert (found >= torch.minimum(a, b) - 1e-6).all()


def test_a_merge_of_a_float32_merge_is_as_good_as_one_of_its_leaves(tmp_path: Path) -> None:
    leaves = noise_files(tmp_path, torch.float16)
    hybrid = tmp_path / "hybrid.safetensors"
    pair = {name: leaves[name] for name in "ab"}
    merge_files(pair, "0.5*a + 0.5*b", hybrid, "float32")
    found = merged({"h": hybrid, "c": leaves["c"]}, "0.6*h + 0.4*c")
    direct = merged(leaves, "0.6*(0.5*a + 0.5*b) + 0.4*c")
    assert torch.allclose(found[KEY], direct[KEY], rtol=0, atol=2**-26)  # one float32 ulp of 0.1


def test_the_same_merge_gives_the_same_bytes_whatever_the_chunks_and_threads(
    tmp_path: Path,
) -> None:
    inputs = noise_files(tmp_path, torch.float16)
    digests = set()
    before = torch.get_num_threads()
    for i, (chunk, threads) in enumerate([(1 << 20, 1), (1 << 20, 2), (1, 1), (7, 2), (50, 1)]):
        torch.set_num_threads(threads)
        out = tmp_path / f"{i}.safetensors"
        merge_files(inputs, "0.6*a + 0.2*b + 0.2*c", out, "float16", chunk_elements=chunk)
        digests.add(sha256(out.read_bytes()).hexdigest())
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert len(digests) == 1


def test_where_the_files_lie_changes_no_byte(tmp_path: Path) -> None:
    found = []
    for folder in (tmp_path / "one", tmp_path / "other" / "folder"):
        folder.mkdir(parents=True)
        merged(abc(folder), "0.5*a + 0.25*b + 0.25*c")
        found.append((folder / "out.safetensors").read_bytes())
    assert found[0] == found[1]


def test_integers_and_position_ids_are_never_interpolated(tmp_path: Path) -> None:
    """Files in the field hold `position_ids` as float16, or damaged by earlier merges."""
    plain = "model.diffusion_model.counter"
    inputs = {}
    for i, name in enumerate("ab"):
        tensors = {POSITIONS: torch.ones(3, 2), plain: torch.tensor([i, 2**40 + i])}
        if i:
            tensors[POSITION_IDS] = torch.tensor([[0.0, 0.9, 2.1]])
        inputs[name] = tmp_path / f"{name}.safetensors"
        save_file(tensors, inputs[name])
    found = merged(inputs, "0.5*a + 0.5*b")
    assert torch.equal(found[POSITION_IDS], torch.tensor([[0, 1, 2]]))
    assert torch.equal(found[plain], torch.tensor([0, 2**40]))


@pytest.mark.parametrize("stored", [torch.int64, torch.float16])
def test_sdxl_s_position_ids_are_integers_that_are_never_interpolated(
    tmp_path: Path, stored: torch.dtype
) -> None:
    key = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
    inputs = {"a": tmp_path / "a.safetensors", "b": tmp_path / "b.safetensors"}
    ids = torch.arange(77).unsqueeze(0)
    save_file({KEY: A, key: ids}, inputs["a"])
    save_file({KEY: B, key: ids.to(stored)}, inputs["b"])
    for expression in ("0.6*a + 0.3*b", "0.6*b + 0.3*a", "slerp(b, a, 0.3)"):
        found = merged(inputs, expression, dtype="float16")[key]
        assert found.dtype == torch.int64
        assert torch.equal(found, ids)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
)
def test_whole_numbers_and_truth_values_are_the_first_model_s(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    inputs = {"a": tmp_path / "a.safetensors", "b": tmp_path / "b.safetensors"}
    for (path, values), weights in zip(
        ((inputs["a"], [1, 0, 1]), (inputs["b"], [0, 1, 1])), (A, B), strict=True
    ):
        save_file({KEY: weights, "steps": torch.tensor(values).to(dtype)}, path)
    found = merged(inputs, "0.6*b + 0.4*a", dtype="float16")["steps"]
    assert found.dtype == dtype
    assert found.tolist() == [0, 1, 1]


def test_a_merge_of_real_networks_loads_in_diffusers_models(
    tmp_path: Path, tiny_sd: TinySD
) -> None:
    from stages.diffusion.model import load_models

    a = save(tiny_sd, tmp_path / "a.safetensors")
    for part in (tiny_sd.unet, tiny_sd.vae, tiny_sd.text_encoder):
        for parameter in part.parameters():
            parameter.data.neg_()
    b = save(tiny_sd, tmp_path / "b.safetensors")
    out = tmp_path / "out.safetensors"
    merge_files({"a": a, "b": b}, "0.75*a + 0.25*b", out, "float32")
    assert set(read_header(out).tensors) == set(read_header(a).tensors)
    found, first = load_models(out, tiny_sd.config), load_models(a, tiny_sd.config)
    for ours, theirs in zip(found.unet.parameters(), first.unet.parameters(), strict=True):
        assert torch.allclose(ours, theirs / 2, atol=1e-7)


def test_old_alias_and_strangers_are_merged_by_their_normal_keys(
    tmp_path: Path, tiny_sd: TinySD
) -> None:
    a = save(tiny_sd, tmp_path / "a.safetensors")
    tensors = load_file(a)
    old = {key.replace(".text_model.", "."): tensor for key, tensor in tensors.items()}
    strangers = {"betas": torch.zeros(3), "model_ema.decay": torch.zeros(1)}
    save_file({**old, **strangers}, tmp_path / "old.safetensors")
    inputs = {"a": a, "old": tmp_path / "old.safetensors"}
    found = merged(inputs, "0.5*old + 0.5*a", dtype="float16")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


def test_any_architecture_is_merged_by_its_own_keys(tmp_path: Path) -> None:
    inputs = {
        name: write(tmp_path / f"{name}.safetensors", {"layers.0": t})
        for name, t in (("a", A), ("b", B))
    }
    assert merged(inputs, "0.5*a + 0.5*b")["layers.0"].tolist() == [[5.5, 11.0], [16.5, 22.0]]


def test_sd2_keeps_its_text_projection_unless_a_file_came_without(tmp_path: Path) -> None:
    projection, scale = (f"cond_stage_model.model.{n}" for n in ("text_projection", "logit_scale"))
    bare = {KEY: A, "cond_stage_model.model.ln_final.bias": torch.ones(2)}
    whole = {**bare, projection: A, scale: torch.tensor(4.0)}
    inputs = {n: write(tmp_path / f"{n}.safetensors", whole) for n in "ab"}
    found = merged(inputs, "0.5*a + 0.5*b")
    assert found.keys() == whole.keys()
    assert torch.equal(found[projection], A)
    assert found[scale].item() == 4.0
    other = write(tmp_path / "other.safetensors", {**whole, scale: torch.tensor(2.0)})
    apart = merged({"a": inputs["a"], "b": other}, "0.5*b + 0.5*a")
    assert apart[scale].item() == 2.0  # the first one's: a number of the training, not of the model
    inputs["vae"] = write(tmp_path / "vae.safetensors", {"decoder.conv_in.bias": torch.ones(2)})
    assert projection in merged(inputs, "parts(0.5*a + 0.5*b, vae=vae)")
    converted = write(tmp_path / "converted.safetensors", bare)
    for first, second in ((inputs["a"], converted), (converted, inputs["a"])):
        assert merged({"a": first, "b": second}, "0.5*a + 0.5*b").keys() == bare.keys()


# What the new file tells


def test_the_new_file_tells_its_recipe_and_ancestry(tmp_path: Path) -> None:
    base = write(tmp_path / "base.safetensors", {KEY: C})
    parent = read_parent(base, read_header(base).metadata)
    trained = tmp_path / "512.safetensors"
    train = made_from({"kind": "train", "run": "512"}, {"base": parent})
    write_single_file(trained, {KEY: A}, {**train, "epoch": "40"}, torch.float16)
    other = write(tmp_path / "other.safetensors", {KEY: B})
    hybrid, last = tmp_path / "hybrid.safetensors", tmp_path / "last.safetensors"
    pair = {"a": trained, "b": other}
    merge_files(pair, "0.5*a + 0.5*b", hybrid, "float32", name="hybrid")
    merge_files({"h": hybrid, "b": other}, "0.6*h + 0.4*b", last, "float16")

    header = read_header(last)
    lineage = read_lineage(header.metadata)
    digest = {p: sha256(p.read_bytes()).hexdigest() for p in (base, trained, other, hybrid)}
    assert json.loads(header.metadata[RECIPE]) == {
        "kind": "merge",
        "expression": "0.6*h + 0.4*b",
        "weights": {"h": "0.6", "b": "0.4"},
        "dtype": "float16",
        "inputs": {"h": digest[hybrid], "b": digest[other]},
    }
    assert set(lineage.ancestors) == set(digest.values())
    assert lineage.inputs(digest[hybrid]) == {"a": digest[trained], "b": digest[other]}
    assert lineage.title(digest[trained]) == "512, epoch 40"
    assert lineage.route(digest[base]) == ["hybrid", "512, epoch 40", "base"]
    shares = {path.stem: str(ancestor_shares(lineage)[d]) for path, d in digest.items()}
    assert shares == {"base": "0", "512": "3/10", "other": "7/10", "hybrid": "3/5"}
    start = min(entry.start for entry in header.tensors.values())
    tensors = sha256(last.read_bytes()[start:]).hexdigest()
    assert header.metadata[TENSORS_HASH] == f"0x{tensors}"
    assert start % 8 == 0
    assert str(tmp_path) not in str(header.metadata)
    assert load_file(last).keys() == {KEY}  # the library takes a header with blanks at its end


def test_a_model_that_a1111_merged_brings_its_ancestors(tmp_path: Path) -> None:
    models = {"ab" * 32: {"name": "secret.ckpt", "legacy_hash": "12345678"}, "cd": 7}
    a = tmp_path / "a.safetensors"
    metadata = {"sd_merge_models": json.dumps(models), "sd_merge_recipe": "no JSON"}
    save_file({KEY: A}, a, metadata)
    merged({"a": a}, "a")
    lineage = read_lineage(read_header(tmp_path / "out.safetensors").metadata)
    assert lineage.ancestors["ab" * 32].name == "secret.ckpt"
    assert lineage.ancestors[lineage.inputs()["a"]].sd_merge_recipe == "no JSON"
    assert [x.name for x in lineage.ancestors.values() if x.unreadable] == ["cd"]


def test_capitals_nan_and_infinity_in_another_program_s_metadata_hide_no_ancestor(
    tmp_path: Path,
) -> None:
    recipe = '{"multiplier": NaN, "other": 1e999}'
    models = f'{{"{"AB" * 32}": {{"name": "secret.ckpt", "sd_merge_recipe": {recipe}}}}}'
    a = tmp_path / "a.safetensors"
    save_file({KEY: A}, a, {"sd_merge_models": models})
    merged({"a": a}, "a")
    lineage = read_lineage(read_header(tmp_path / "out.safetensors").metadata)
    ancestor = lineage.ancestors["ab" * 32]
    assert (ancestor.name, ancestor.unreadable) == ("secret.ckpt", None)
    assert ancestor.sd_merge_recipe == {"multiplier": "NaN", "other": "1e999"}


@pytest.mark.parametrize("digits", ["0" * 64, f"{1:064x}", "f" * 64, "", "?" * 63 + "0", "g" * 64])
@pytest.mark.parametrize("key", ["sd_merge_models", ANCESTRY])
def test_an_ancestor_may_be_told_to_have_any_hash(tmp_path: Path, digits: str, key: str) -> None:
    inputs = {name: tmp_path / f"{name}.safetensors" for name in "ab"}
    for path, values in zip(inputs.values(), (A, B), strict=True):
        save_file(
            {KEY: values}, path, {key: json.dumps({digits: {"name": "x", "legacy_hash": ""}})}
        )
    if key == ANCESTRY and not re.fullmatch("[0-9a-f]{64}", digits):
        with pytest.raises(ValueError, match=r"a\.safetensors: .* names an ancestor by"):
            merged(inputs, "0.5*a + 0.5*b")
        return
    merged(inputs, "0.5*a + 0.5*b")
    lineage = read_lineage(read_header(tmp_path / "out.safetensors").metadata)
    assert "x" in {ancestor.name for ancestor in lineage.ancestors.values()}


def chain(length: int) -> dict[str, str]:
    """Tell of files each made of the one before it."""
    nodes: dict[str, dict[str, object]] = {"0" * 64: {"name": "base", "legacy_hash": ""}}
    for i in range(1, length):
        recipe = {"kind": "merge", "expression": "a", "inputs": {"a": f"{i - 1:064x}"}}
        nodes[f"{i:064x}"] = {"name": str(i), "legacy_hash": "", "recipe": recipe}
    last = {"kind": "merge", "expression": "a", "inputs": {"a": f"{length - 1:064x}"}}
    return {RECIPE: json.dumps(last), ANCESTRY: json.dumps(nodes)}


def circle() -> dict[str, str]:
    metadata = chain(2)
    nodes = json.loads(metadata[ANCESTRY])
    nodes["0" * 64]["recipe"] = {"kind": "train", "inputs": {"a": f"{1:064x}"}}
    return metadata | {ANCESTRY: json.dumps(nodes)}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (chain(5000), "tells 5,000 generations of files, at most 200 are read"),
        (circle(), "says that a file was made of itself"),
        ({RECIPE: "[" * 900 + "]" * 900}, "more than 100 levels of brackets"),
        ({RECIPE: '{"kind": "merge", "inputs": {}}'}, "a merge without an expression"),
    ],
)
def test_an_ancestry_that_nothing_could_walk_is_refused_by_the_file_s_name(
    tmp_path: Path, metadata: dict[str, str], words: str
) -> None:
    a = tmp_path / "a.safetensors"
    save_file({KEY: A}, a, metadata)
    with pytest.raises(ValueError, match=words) as refusal:
        merged({"a": a}, "a")
    assert str(a) in str(refusal.value)


def test_two_hundred_generations_are_read_and_shown(tmp_path: Path) -> None:
    lineage = read_lineage(chain(200))
    assert len(lineage.route("0" * 64)) == 200
    assert ancestor_tree(lineage, lineage.title).count("\n") == 199


def test_a_stranger_s_recipe_of_countless_brackets_is_carried_as_text(tmp_path: Path) -> None:
    deep = "[" * 900 + "]" * 900
    a = tmp_path / "a.safetensors"
    save_file({KEY: A}, a, {"sd_merge_recipe": deep})
    merged({"a": a}, "a")
    lineage = read_lineage(read_header(tmp_path / "out.safetensors").metadata)
    assert lineage.ancestors[lineage.inputs()["a"]].sd_merge_recipe == deep


# What is refused


def test_another_architecture_is_refused_with_its_first_key_and_both_shapes(
    tmp_path: Path,
) -> None:
    tensors = {KEY: A, "model.diffusion_model.out.0.bias": torch.ones(3)}
    a = write(tmp_path / "a.safetensors", tensors)
    b = write(tmp_path / "b.safetensors", {KEY: torch.ones(4, 2)})
    with pytest.raises(ValueError, match="not the architecture") as refusal:
        merged({"a": a, "b": b}, "0.5*a + 0.5*b")
    message = str(refusal.value)
    assert f"{b}: not the architecture of {a}" in message
    assert "2 of 2 keys differ" in message
    assert "model.diffusion_model.out.0.bias: [3] F16 there, no such key here" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {"lora_unet_down.weight": A}, "This is a LoRA"),
        (
            lambda t: t | {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 9, 3, 3)},
            "an inpainting model, whose first layer takes 9 channels, must be the first",
        ),
        (lambda t: t | {KEY: torch.ones(2, 2, dtype=torch.int64)}, "[2, 2] I64 here"),
    ],
)
def test_the_odd_one_is_told_what_it_may_be(
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    words: str,
) -> None:
    tensors = {KEY: A, "model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)}
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(tensors, a)
    save_file(change(tensors), b)
    with pytest.raises(ValueError, match=r"keys differ|must be the first") as refusal:
        merged({"a": a, "b": b}, "0.5*a + 0.5*b")
    assert words in str(refusal.value)


def test_of_many_differing_keys_five_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    a = write(tmp_path / "a.safetensors", {f"{KEY}.{i}": A for i in range(9)})
    b = write(tmp_path / "b.safetensors", {f"{KEY}.{i}": A[:1] for i in range(9)})
    with pytest.raises(ValueError, match=r"9 of 9 keys differ") as refusal:
        merged({"a": a, "b": b}, "a + b")
    assert str(refusal.value).count("[2, 2] F16 there, [1, 2] F16 here") == 5
    assert "and 4 more" in str(refusal.value)


def test_what_other_architectures_hold_besides_is_merged_too(tmp_path: Path) -> None:
    keys = (KEY, "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight")
    strangers = ("model_ema.decay", "betas", "sqrt_alphas_cumprod", "posterior_variance")
    for name, tensor in (("a", A), ("b", B)):
        save_file(
            {key: tensor.clone() for key in (*keys, *strangers)}, tmp_path / f"{name}.safetensors"
        )
    inputs = {name: tmp_path / f"{name}.safetensors" for name in "ab"}
    result = merged(inputs, "0.5*a + 0.5*b")
    assert set(result) == set(keys)
    assert torch.equal(result[keys[1]], (A + B) / 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "expression",
    [
        "a + 0*b",
        "a + b - b",
        "mbw(a, b, GRAD_V)",
        "0.5*a + 0.5*ties(a, [b], 0)",
        "train_difference(a, a, b)",
        "slerp(a, b, 0.5)",
        "dare(a, b, 0.001)",
    ],
)
def test_nan_is_refused_also_where_the_result_would_not_show_it(
    tmp_path: Path, expression: str, value: float
) -> None:
    """The middle block's weight in GRAD_V is 0, and so is what ties keeps here."""
    middle = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    bad = B.clone()
    bad[1, 1] = value
    inputs = {"a": tmp_path / "a.safetensors", "b": tmp_path / "b.safetensors"}
    save_file({middle: A}, inputs["a"])
    save_file({middle: bad}, inputs["b"])
    with pytest.raises(ValueError, match="holds NaN or infinity") as refusal:
        merged(inputs, expression)
    assert f"{inputs['b']}: {middle!r}" in str(refusal.value)
    merged(inputs, expression, allow_nonfinite=True)


def test_nan_where_nothing_is_taken_from_does_no_harm(tmp_path: Path) -> None:
    """Baking a VAE in asks nothing of the other parts of its file."""
    vae = "first_stage_model.decoder.conv_in.weight"
    inputs = {"a": tmp_path / "a.safetensors", "b": tmp_path / "b.safetensors"}
    save_file({KEY: A, vae: A.clone()}, inputs["a"])
    save_file({KEY: B * float("nan"), vae: B}, inputs["b"])
    assert torch.equal(merged(inputs, "parts(a, vae=b)")[vae], B)


def test_an_autoencoder_alone_is_baked_in_also_where_there_was_none(tmp_path: Path) -> None:
    name, vae = "decoder.conv_in.weight", "first_stage_model.decoder.conv_in.weight"
    files = {n: tmp_path / f"{n}.safetensors" for n in ("whole", "pruned", "alone")}
    save_file({KEY: A, vae: A.clone()}, files["whole"])
    save_file({KEY: B}, files["pruned"])
    save_file({name: C, "loss.logvar": torch.zeros(1)}, files["alone"])
    for base, own in (("whole", A), ("pruned", B)):
        inputs = {"a": files[base], "v": files["alone"]}
        found = merged(inputs, "parts(a, vae=v)")
        assert sorted(found) == [vae, KEY]
        assert torch.equal(found[vae], C)
        assert torch.equal(found[KEY], own)
    inputs = {"a": files["whole"], "b": files["pruned"], "v": files["alone"]}
    found = merged(inputs, "parts(0.5*a + 0.5*b, vae=v)")
    assert torch.equal(found[KEY], (A + B) / 2)
    with pytest.raises(ValueError, match="1 of 2 keys differ"):
        merged({"a": files["whole"], "b": files["pruned"]}, "0.5*a + 0.5*b")


@pytest.mark.parametrize("is_old", [False, True])
def test_an_autoencoder_in_the_diffusers_layout_is_baked_in_as_what_it_is(
    tmp_path: Path, tiny_sd: TinySD, is_old: bool
) -> None:
    a = save(tiny_sd, tmp_path / "a.safetensors")
    state = tiny_sd.vae.state_dict()
    if is_old:
        for now, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            state = {key.replace(f".{now}.", f".{before}."): state[key] for key in state}
        state = {key.replace(".to_out.0.", ".proj_attn."): state[key] for key in state}
    vae = tmp_path / "v.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, vae)
    found = merged({"a": a, "v": vae}, "parts(0 * a, vae=v)", dtype="float16")
    for key, tensor in load_file(a).items():
        baked = key.startswith("first_stage_model.") or key == POSITION_IDS
        assert torch.equal(found[key], tensor if baked else torch.zeros_like(tensor)), key
    assert found.keys() == load_file(a).keys()


@pytest.mark.parametrize("in_diffusers_layout", [False, True])
def test_a_part_that_does_not_fit_in_is_refused_though_nothing_else_is_merged_with_it(
    tmp_path: Path, tiny_sd: TinySD, in_diffusers_layout: bool
) -> None:
    a = save(tiny_sd, tmp_path / "a.safetensors")
    vae = tiny_sd.vae.state_dict()
    if not in_diffusers_layout:
        start = "first_stage_model."
        vae = {k.removeprefix(start): t for k, t in load_file(a).items() if k.startswith(start)}
    whole = len(vae)
    halves = {key: t.contiguous() for key, t in vae.items() if not key.startswith("encoder.")}
    wide = {**vae, "decoder.conv_in.bias": torch.zeros(999)}
    for tensors, count in ((halves, whole - len(halves)), (wide, 1)):
        v = tmp_path / "v.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, v)
        with pytest.raises(ValueError, match=f"{count} of {whole} keys differ") as refusal:
            merged({"a": a, "v": v}, "parts(a, vae=v)")
        assert str(refusal.value).count("\n  first_stage_model.") == min(count, 5)
    strange = {**tiny_sd.vae.state_dict(), "decoder.strange.weight": torch.zeros(1)}
    save_file({key: tensor.contiguous() for key, tensor in strange.items()}, v)
    with pytest.raises(ValueError, match=r"v\.safetensors: .*'decoder\.strange\.weight'"):
        merged({"a": a, "v": v}, "parts(a, vae=v)")


def test_an_old_text_encoder_alone_is_read_by_its_normal_keys(
    tmp_path: Path, tiny_sd: TinySD
) -> None:
    a = save(tiny_sd, tmp_path / "a.safetensors")
    start = "cond_stage_model.transformer."
    own = {key: t + 1 for key, t in load_file(a).items() if key.startswith(start)}
    old = {key.replace(".text_model.", "."): tensor for key, tensor in own.items()}
    save_file(old, tmp_path / "t.safetensors")
    inputs = {"a": a, "t": tmp_path / "t.safetensors"}
    found = merged(inputs, "parts(a, text_encoder=t)", dtype="float16")
    assert found.keys() == load_file(a).keys()
    assert all(torch.equal(found[key], own[key]) for key in own if key != POSITION_IDS)


def test_another_text_encoder_does_not_fit_in_either(tmp_path: Path) -> None:
    inputs = {"a": tmp_path / "a.safetensors", "t": tmp_path / "t.safetensors"}
    save_file({KEY: A, POSITIONS: torch.zeros(7, 4)}, inputs["a"])
    save_file({KEY: A, "cond_stage_model.model.ln_final.weight": A.clone()}, inputs["t"])
    with pytest.raises(ValueError, match="2 of 2 keys differ"):
        merged(inputs, "parts(a, text_encoder=t)")


def test_a_text_encoder_in_another_layout_is_what_lacks_the_keys(tmp_path: Path) -> None:
    whole = {KEY: A, "cond_stage_model.transformer.text_model.final_layer_norm.bias": A}
    inputs = {"a": write(tmp_path / "a.safetensors", whole)}
    inputs["t"] = write(tmp_path / "t.safetensors", {"text_model.final_layer_norm.bias": B})
    with pytest.raises(ValueError, match="text_encoder= names holds keys of the text_encoder, as"):
        merged(inputs, "parts(a, text_encoder=t)")


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("mbw(a, b, GRAD_V)", "block weights are for the UNet"),
        ("0.5*a + 0.5*slerp(a, mbw(a, b, FLAT_50), 0.5)", "block weights are for the UNet"),
        ("parts(a, vae=b)", "no file that vae= names holds keys of the vae"),
        ("parts(a, text_encoder=b)", "no file that text_encoder= names"),
    ],
)
def test_block_weights_and_parts_that_would_do_nothing_are_refused(
    tmp_path: Path, expression: str, words: str
) -> None:
    """On another architecture a preset's 0 for BASE would silently give the first model."""
    inputs = {
        name: write(tmp_path / f"{name}.safetensors", {"layers.0": t})
        for name, t in (("a", A), ("b", B))
    }
    with pytest.raises(ValueError, match=words):
        merged(inputs, expression)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parts(0.5*a + 0.5*b, vae=2*v)", "sum to 2 in the vae, not to 1"),
        ("parts(a, unet=a + b, vae=0.5*v)", "sum to 2 in the unet and to 0.5 in the vae, not to 1"),
        ("mbw(a, 2*b, GRAD_V)", "in the unet"),
        ("2*parts(a, vae=v)", "sum to 2, not to 1"),
    ],
)
def test_each_part_s_weights_are_added_up(text: str, words: str) -> None:
    assert words in str(sum_warning(text, parse_expression(text)))


@pytest.mark.parametrize(
    "text", ["parts(0.5*a + 0.5*b, vae=v)", "mbw(a, b, GRAD_A)", "parts(a, unet=ties(a, [b]))"]
)
def test_parts_that_each_sum_to_one_are_no_reason_to_warn(text: str) -> None:
    assert sum_warning(text, parse_expression(text)) is None


def test_nan_is_merged_where_it_is_allowed(tmp_path: Path) -> None:
    inputs = abc(tmp_path)
    save_file({KEY: A / torch.tensor([[1.0, 0.0], [1.0, 1.0]])}, inputs["b"])
    result = merged(inputs, "0.5*a + 0.25*b + 0.25*c", allow_nonfinite=True)[KEY]
    assert result.isinf().tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize(
    ("write_bad", "words"),
    [
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "a pickle"),
        (lambda path: torch.save({"a": A}, path), "a pickle"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder. Name one safetensors file"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"[2,2]", b"[2,3]")),
            r"is said to have 8 bytes, but \[2, 3\] of F16 take 12 \(a file of",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut short"),
        (lambda path: save_file({KEY: A.double()}, path), "stored as F64"),
        (lambda path: save_file({KEY: A / 0}, path), "out.2.weight' holds NaN or infinity"),
        (lambda path: save_file({KEY: A * float("nan")}, path), "out.2.weight' holds NaN"),
        (lambda path: save_file({KEY: A.to(torch.float8_e4m3fn)}, path), "stored as F8_E4M3"),
        (lambda path: save_file({}, path), "holds no weights"),
    ],
)
def test_a_bad_file_is_refused_by_name(
    tmp_path: Path, write_bad: Callable[[Path], Any], words: str
) -> None:
    inputs = abc(tmp_path)
    write_bad(inputs["b"])
    with pytest.raises((ValueError, OSError), match=words) as refusal:
        merged(inputs, "0.5*a + 0.25*b + 0.25*c")
    assert str(inputs["b"]) in str(refusal.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("length", [25_000_001, 100_000_000, 2**63 - 1])
def test_a_header_longer_than_the_limit_is_told_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.delenv("TRACEBACK", raising=False)
    inputs = abc(tmp_path)
    with inputs["b"].open("wb") as file:
        file.write(length.to_bytes(8, "little") + b"{")
        file.truncate(100_000_009)  # sparse: on most disks it takes no room
    with pytest.raises(ValueError, match="header says that it is") as refusal:
        merged(inputs, "a + b - c")
    told = [str(refusal.value)]
    for command in (merge.main, release.main):
        with pytest.raises(SystemExit) as end:
            command(["inspect" if command is merge.main else "verify", str(inputs["b"])])
        told.append(str(end.value))
    for message in told:
        for words in (str(inputs["b"]), f"{length:,} bytes", "25,000,000", "fetch it again"):
            assert words in message


def test_a_header_that_is_not_too_long_but_cut_is_told_as_such(tmp_path: Path) -> None:
    inputs = abc(tmp_path)
    inputs["b"].write_bytes((25_000_000).to_bytes(8, "little") + b"{")
    with pytest.raises(ValueError, match="header is cut short"):
        merged(inputs, "a + b - c")


def test_what_is_rounded_to_the_largest_float16_is_no_reason_to_refuse(tmp_path: Path) -> None:
    numbers = {KEY: torch.tensor([65510.0, -65519.0])}
    edge = {"a": write(tmp_path / "a.safetensors", numbers, torch.float32)}
    assert merged(edge, "a", dtype="float16")[KEY].tolist() == [65504.0, -65504.0]
    with pytest.raises(ValueError, match=r"too large for torch\.float16"):
        merged(edge, "1.0001*a", dtype="float16")


def test_a_sum_that_float16_cannot_hold_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    inputs = {
        "a": write(tmp_path / "a.safetensors", {KEY: A * 10_000}),
        "b": write(tmp_path / "b.safetensors", {KEY: -A * 10_000}),
    }
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"out\.2\.weight.*too large for torch\.float16"):
        merge_files(inputs, "2*a - b", out, "float16")
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.safetensors",
        "b.safetensors",
        "out.safetensors",
    ]


def test_an_input_is_not_overwritten(tmp_path: Path) -> None:
    inputs = abc(tmp_path)
    (tmp_path / "link.safetensors").symlink_to(inputs["a"])
    for out in (inputs["a"], tmp_path / "link.safetensors"):
        with pytest.raises(ValueError, match="is also the input 'a'"):
            merge_files(inputs, "a + b - c", out, "float16")


def test_an_input_with_the_scratch_file_s_name_is_not_destroyed(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    inputs = {"a": abc(tmp_path)["a"].rename(tmp_path / "out.safetensors.partial")}
    with pytest.raises(ValueError, match=r"the name under which .* is written"):
        merge_files(inputs, "a", out, "float16")
    assert torch.equal(load_file(inputs["a"])[KEY], A.half())


@pytest.mark.parametrize("what", ["a", "out"])
def test_a_report_replaces_no_weights(tmp_path: Path, what: str) -> None:
    inputs = abc(tmp_path)
    (tmp_path / "out.safetensors").write_bytes(b"older")
    (tmp_path / "link").symlink_to(tmp_path / f"{what}.safetensors")
    before = (tmp_path / f"{what}.safetensors").read_bytes()
    out = f"--out={tmp_path / 'out.safetensors'}"
    report = f"--report={tmp_path / 'link'}"
    with pytest.raises(SystemExit, match=r"is also the (input 'a'|new out)"):
        main(["--expression", "a", f"a={inputs['a']}", out, report])
    assert (tmp_path / f"{what}.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("report", "words"),
    [("folder", "folder: is no file"), ("a.safetensors/x.json", "a.* is no folder")],
)
def test_a_report_that_cannot_be_written_is_known_before_the_work(
    tmp_path: Path, report: str, words: str
) -> None:
    (tmp_path / "folder").mkdir()
    out = tmp_path / "out.safetensors"
    given = [f"a={abc(tmp_path)['a']}", "--out", str(out), "--report", str(tmp_path / report)]
    with pytest.raises(SystemExit, match=words):
        main(["--expression", "a", *given])
    assert not out.exists()


def test_what_is_no_file_or_has_a_pickle_s_name_is_not_written(tmp_path: Path) -> None:
    inputs = abc(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ValueError, match="is no file"):
        merge_files(inputs, "a + b - c", tmp_path / "pipe.safetensors", "float16")
    with pytest.raises(ValueError, match=r"written as \*\.safetensors"):
        merge_files(inputs, "a + b - c", tmp_path / "model.ckpt", "float16")


def test_a_folder_that_is_none_is_known_to_a_dry_run_too(tmp_path: Path) -> None:
    a = abc(tmp_path)["a"]
    for options in (["--dry-run"], []):
        with pytest.raises(SystemExit, match=r"a\.safetensors is no folder"):
            main(["--expression", "a", f"a={a}", "--out", str(a / "new.safetensors"), *options])


def test_hundreds_of_inputs_merge(tmp_path: Path) -> None:
    one = abc(tmp_path)["a"]
    inputs = {f"model_{i}": one for i in range(400)}
    expression = " + ".join(f"0.0025*{name}" for name in inputs)
    found = merged(inputs, expression)[KEY]
    assert torch.allclose(found, A, rtol=1e-4)


def test_too_little_room_is_known_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="No room for"):
        merged(abc(tmp_path), "a + b - c")


def test_what_a_kill_left_takes_no_room_from_the_next_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = abc(tmp_path)
    left = tmp_path / "out.safetensors.partial"
    left.write_bytes(bytes(10_000))

    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=10_000 - left.stat().st_size)

    monkeypatch.setattr("shutil.disk_usage", usage)
    assert torch.equal(merged(inputs, "a + b - c")[KEY], A + B - C)


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path) -> None:
    inputs = [f"a={write(tmp_path / 'a.safetensors', {KEY: torch.ones(10**6)})}"]
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # bytes

    run = merge_command("--expression", "a", *inputs, "--out", str(out), before=limit_file_size)
    assert run.returncode == 1
    assert "File too large" in run.stderr
    assert "an older file of this name is as it was" in run.stderr
    assert "Traceback" not in run.stderr
    assert out.read_bytes() == b"old"
    assert not list(tmp_path.glob("*.partial"))


# The command line


def merge_command(
    *options: str, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stages.merge", *options],
        cwd=ROOT,
        env={**os.environ, "TRACEBACK": ""},
        preexec_fn=before,
        capture_output=True,
        text=True,
        check=False,
    )


def test_more_inputs_merge_than_a_system_lets_a_process_open_by_default(tmp_path: Path) -> None:
    inputs = []
    for i in range(80):
        path = write(tmp_path / f"m{i}.safetensors", {KEY: A}, torch.float32)
        inputs.append(f"m{i}={path}")
    expression = " + ".join(f"m{i}/80" for i in range(80))

    def limit_open_files() -> None:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (60, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )

    out = tmp_path / "out.safetensors"
    command = ("--expression", expression, *inputs, "--out", str(out))
    run = merge_command(*command, before=limit_open_files)
    assert run.returncode == 0, run.stderr
    assert torch.allclose(load_file(out)[KEY].float(), A, rtol=1e-3)


def test_the_help_says_what_to_type() -> None:
    text = " ".join(merge_command("--help").stdout.split())
    for words in ("a=FILE b=FILE", "0.6*a + 0.2*b + 0.2*c", "slerp(a, b, t)", "--recipe SECTION"):
        assert words in text


def test_a_recipe_in_the_params_gives_the_same_as_its_expression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = abc(tmp_path)
    named = [f"{name}={path}" for name, path in inputs.items() if name != "c"]
    params = tmp_path / "params.yaml"
    params.write_text(
        "merge:\n  mixes:\n    hybrid: {expression: 0.5*a + 0.5*b, dtype: float32}\n"
        "    listed:\n      expression: 0.5*a + 0.5*b\n      dtype: float32\n"
        f"      inputs: [{{name: a, file: {inputs['a']}}}, {{name: b, file: {inputs['b']}}}]\n"
    )
    outs = [tmp_path / f"{i}.safetensors" for i in range(3)]
    options = ["--params", str(params), "--report", str(tmp_path / "report.json")]
    main(["--recipe", "merge.mixes.hybrid", *named, "--out", str(outs[0]), *options])
    main(["--recipe", "merge.mixes.listed", "--out", str(outs[1]), *options])
    main(["--expression", "0.5*a + 0.5*b", *named, "--out", str(outs[2]), "--dtype", "float32"])
    first, *others = (load_file(out)[KEY] for out in outs)
    assert all(torch.equal(first, other) for other in others)
    assert json.loads(read_header(outs[0]).metadata[RECIPE])["name"] == "hybrid"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["weights"] == {"a": 0.5, "b": 0.5}
    assert report["bytes"] == outs[1].stat().st_size
    assert "Merging 2 files" in capsys.readouterr().out


def test_a_merge_tells_what_it_does_and_how_fast_and_warns_of_odd_weights(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    named = [f"{name}={path}" for name, path in abc(tmp_path).items()]
    out = tmp_path / "out.safetensors"
    main(["--expression", "a + 0.5*b + 0*c", *named, "--out", str(out)])
    told = capfd.readouterr()
    assert "Warning: merge expression 'a + 0.5*b + 0*c': the weights sum to 1.5" in told.err
    for words in ("Merging 3 files", "0.5 b = ", "It takes about 1 s.", "MB/s read and written"):
        assert words in told.out
    assert torch.equal(load_file(out)[KEY], (A + 0.5 * B).half())


@pytest.mark.parametrize("text", ["-0.5*a + 1.5*b", "-0.5*a+1.5*b", "-h*0 - a + 2*b"])
def test_an_expression_may_begin_with_a_minus(tmp_path: Path, text: str) -> None:
    inputs = abc(tmp_path)
    inputs["h"] = inputs.pop("c")
    given = [f"{name}={path}" for name, path in inputs.items() if name in text]
    out = tmp_path / "out.safetensors"
    main(["--expression", text, *given, "--out", str(out), "--dtype", "float32"])
    expected = {"-0": B * 1.5 - A * 0.5, "-h": B * 2 - A}[text[:2]]
    assert torch.equal(load_file(out)[KEY], expected)


def test_a_recipe_s_inputs_have_any_names(tmp_path: Path) -> None:
    files = abc(tmp_path)
    recipe: dict[str, Any] = {
        "expression": "low + 0.5*(vodka3 - _v1)",
        "dtype": "float32",
        "inputs": [
            {"name": name, "file": str(path)}
            for name, path in zip(("low", "vodka3", "_v1"), files.values(), strict=True)
        ],
    }
    params = tmp_path / "params.yaml"
    params.write_text(json.dumps({"merge": {"mixes": {"mine": recipe}}}))
    out = tmp_path / "out.safetensors"
    main(["--recipe", "merge.mixes.mine", "--out", str(out), "--params", str(params)])
    assert torch.equal(load_file(out)[KEY], A + 0.5 * (B - C))
    header = read_header(out).metadata
    assert list(read_lineage(header).inputs()) == ["low", "vodka3", "_v1"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([("a", "x"), ("a", "y")], "the name 'a' is given twice"),
        ([("512", "x"), ("b", "y")], "inputs.0: '512' cannot name an input"),
        ([("a b", "x"), ("b", "y")], "'a b' cannot name an input"),
        ([("a", "x")], "names 'b', but no file is given for it"),
        ([("a", "x"), ("b", "x"), ("c", "x")], "does not name 'c'"),
    ],
)
def test_inputs_that_do_not_fit_their_expression_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inputs: list[tuple[str, str]],
    words: str,
) -> None:
    monkeypatch.delenv("TRACEBACK", raising=False)
    named = [{"name": name, "file": file} for name, file in inputs]
    recipe = {"expression": "a + b", "dtype": "float32", "inputs": named}
    params = tmp_path / "params.yaml"
    params.write_text(json.dumps({"merge": {"mixes": {"mine": recipe}}}))
    out = ["--out", str(tmp_path / "out.safetensors"), "--params", str(params)]
    with pytest.raises(SystemExit) as end:
        main(["--recipe", "merge.mixes.mine", *out])
    assert words in str(end.value)


def test_files_on_the_command_line_replace_all_of_a_recipe_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph names those that it watches, so that none is merged unwatched."""
    monkeypatch.delenv("TRACEBACK", raising=False)
    files = abc(tmp_path)
    named = [{"name": name, "file": str(path)} for name, path in files.items()]
    recipe = {"expression": "a + b - c", "dtype": "float32", "inputs": named}
    params = tmp_path / "params.yaml"
    params.write_text(json.dumps({"merge": {"mixes": {"mine": recipe}}}))
    given = [f"a={files['a']}", f"b={files['b']}"]
    options = ["--out", str(tmp_path / "out.safetensors"), "--params", str(params)]
    with pytest.raises(SystemExit, match="names 'c', but no file is given for it"):
        main(["--recipe", "merge.mixes.mine", *given, *options])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--expression", "0.5*a + 0.5*x"], "'x', but no file is given for it. Add x=FILE"),
        (["--expression", "0.5*a + 0.5*b"], "does not name 'c'"),
        (["--expression", "a +"], "position 4"),
        (["--expression", "a", "b"], "expected NAME=FILE"),
        (["--expression", "a", "a=other"], "'a' is given twice, for other and for"),
        (["--recipe", "merge.mixes.hybird"], "did you mean 'hybrid'?"),
    ],
)
def test_a_bad_command_ends_with_one_message(
    tmp_path: Path, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRACEBACK", raising=False)
    params = tmp_path / "params.yaml"
    params.write_text(
        "merge:\n  mixes:\n    hybrid: {expression: 0.5*a + 0.5*b, dtype: float16}\n"
        "    heavy: {expression: a + 0.5*b, dtype: float16}\n"
    )
    named = [f"{name}={path}" for name, path in abc(tmp_path).items()]
    out = tmp_path / "out.safetensors"
    with pytest.raises(SystemExit) as end:
        main([*options, *named, "--out", str(out), "--params", str(params)])
    assert words in str(end.value)
    assert not out.exists()
