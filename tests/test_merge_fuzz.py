"""Merges of what nobody wrote on purpose: expressions, headers, metadata."""

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stages.diffusion.header import BITS, header_bytes, read_header
from stages.lineage.ancestry import ANCESTRY, RECIPE
from stages.merging.expression import parse_expression, substituted
from stages.merging.files import Dtype, merge_files
from stages.merging.table import METHODS, PRESETS, Parameter
from stages.merging.terms import model_names
from stages.merging.text import format_sum

KEY = "model.diffusion_model.out.2.weight"
VALUES = {"a": Fraction(2, 7), "b": Fraction(-3), "c": Fraction(11, 5), "vodka_v": Fraction(1, 13)}
often = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Expressions

digits = st.integers(1, 9).map(str)
shares = st.one_of(
    digits.map("({}/9)".format), digits.map("-({}/9)".format), digits.map("(1 - {}/9)".format)
)


def combined(models: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Add, subtract, scale and divide models, in as many ways as the grammar has."""
    return st.one_of(
        st.tuples(models, st.sampled_from([" + ", "-", " - -", "+-"]), models).map("".join),
        st.tuples(shares, models).map(lambda pair: f"{pair[0]} * ({pair[1]})"),
        st.tuples(models, shares).map(lambda pair: f"({pair[0]})*{pair[1]}"),
        st.tuples(models, digits).map(lambda pair: f"({pair[0]}) / {pair[1]}"),
        models.map("+(-({}))".format),
    )


sums = st.recursive(st.sampled_from(list(VALUES)), combined, max_leaves=12)


@given(sums)
def test_a_sum_means_what_python_s_own_arithmetic_makes_of_it(text: str) -> None:
    weights = parse_expression(text)
    found = sum((weight * VALUES[str(name)] for name, weight in weights.items()), Fraction())
    exact = re.sub(r"(\d)", r"F(\1)", text)  # else 1/9 would be a float
    assert found == eval(exact, {"F": Fraction, **VALUES})


def argument(parameter: Parameter, models: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Draw what a method's parameter may be given, by its name where it must be."""
    match parameter.kind:
        case "model":
            drawn = models
        case "models":
            drawn = st.lists(models, min_size=1, max_size=3).map(", ".join).map("[{}]".format)
        case "number":
            low, high = max(parameter.low, -9), min(parameter.high, 9)
            whole = st.integers(0, int(high)).map(str)
            drawn = st.one_of(st.sampled_from([f"{low}", f"{high}"]), whole)
            drawn = whole if parameter.name == "seed" or not low else drawn
            drawn = st.just("0.5") if parameter.name == "keep" else drawn
        case "blocks":
            drawn = st.one_of(
                st.sampled_from(sorted(PRESETS)),
                st.lists(digits, min_size=26, max_size=26).map(", ".join).map("[{}]".format),
            )
    return drawn.map(f"{parameter.name}={{}}".format) if parameter.is_optional else drawn


def called(models: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Call each method with arguments that it takes."""
    calls = []
    for name, method in METHODS.items():
        given_ = [argument(parameter, models) for parameter in method.parameters]
        calls.append(st.tuples(*given_).map(", ".join).map(f"{name}({{}})".format))
    return st.one_of(combined(models), *calls)


expressions = st.recursive(st.sampled_from(list(VALUES)), called, max_leaves=8)


@given(expressions)
def test_what_is_read_can_be_written_and_read_again(text: str) -> None:
    weights = parse_expression(text)
    assert parse_expression(format_sum(weights)) == weights
    assert set(model_names(weights)) <= set(VALUES)


@given(expressions, expressions)
def test_an_expression_in_the_place_of_a_name_is_as_good_as_the_name(
    outer: str, inner: str
) -> None:
    """Renamed there and back, nothing is changed; put in, no other name is."""
    renamed = substituted(outer, dict.fromkeys(VALUES, "zz"), brackets=False)
    assert set(model_names(parse_expression(renamed))) == {"zz"}
    both = parse_expression(substituted(outer, {"a": inner}))
    expected = set(model_names(parse_expression(outer))) - {"a"}
    if "a" in model_names(parse_expression(outer)):
        expected |= set(model_names(parse_expression(inner)))
    assert set(model_names(both)) == expected


# Headers

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from([*BITS, "F17", "f16"]), json_values),
        "shape": st.one_of(st.lists(st.integers(0, 5), max_size=3), json_values),
        "data_offsets": st.one_of(st.lists(st.integers(0, 64), max_size=3), json_values),
        "more": json_values,
    },
)
headers = st.one_of(
    json_values,
    st.dictionaries(
        st.one_of(st.just("__metadata__"), texts), st.one_of(entries, json_values), max_size=4
    ),
)


@given(headers, st.integers(0, 64), st.integers(-3, 3))
@often
def test_no_header_crashes_and_what_is_read_the_library_opens(
    tmp_path: Path, header: Any, size: int, lie: int
) -> None:
    path = tmp_path / "a.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(max(len(text) + lie, 0).to_bytes(8, "little") + text + bytes(size))
    try:
        found = read_header(path)
    except ValueError as refusal:
        assert str(path) in str(refusal)  # noqa: PT017  some are sound
        return
    with safe_open(path, "pt") as theirs:
        assert sorted(theirs.keys()) == sorted(found.tensors)


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@given(
    st.dictionaries(texts.filter(lambda key: key != "__metadata__"), shapes, max_size=5),
    st.dictionaries(texts, texts, max_size=5),
)
@often
def test_any_keys_and_metadata_are_written_as_the_library_reads_them(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], metadata: dict[str, str]
) -> None:
    path = tmp_path / "a.safetensors"
    header = header_bytes({key: ("F32", shape) for key, shape in tensors.items()}, metadata)
    count = sum(torch.Size(shape).numel() for shape in tensors.values())
    path.write_bytes(header + bytes(4 * count))
    assert len(header) % 8 == 0
    assert {key: tuple(t.shape) for key, t in load_file(path).items()} == tensors
    with safe_open(path, "pt") as theirs:
        assert theirs.metadata() == {**metadata, "format": "pt"}
    assert {key: entry.shape for key, entry in read_header(path).tensors.items()} == tensors


# Whole merges

DTYPES: dict[Dtype, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
stored = st.sampled_from(list(DTYPES))


@given(sums, st.lists(shapes, min_size=1, max_size=4), st.data())
@settings(often, max_examples=40)
def test_any_sum_of_any_shapes_and_dtypes_is_the_plain_one_rounded_once(
    tmp_path: Path, expression: str, sizes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    """In whatever order the file holds its tensors, scalars and empty ones among them."""
    weights = parse_expression(expression)
    files, models = {}, {}
    for number, name in enumerate(model_names(weights)):
        generator = torch.Generator().manual_seed(number)
        dtype = DTYPES[data.draw(stored)]
        models[name] = {
            f"layers.{i}": torch.randn(size, generator=generator).to(dtype)
            for i, size in enumerate(sizes)
        }
        files[name] = tmp_path / f"{name}.safetensors"
        save_file(models[name], files[name])
    out, kind = tmp_path / "out.safetensors", data.draw(stored)
    merge_files(files, expression, out, kind, chunk_elements=data.draw(st.integers(1, 9)))
    found = load_file(out)
    for key in (f"layers.{i}" for i in range(len(sizes))):
        terms = [(str(name), float(weight)) for name, weight in weights.items() if weight]
        plain = [models[name][key].float() * weight for name, weight in terms]
        total = plain[0] if plain else torch.zeros(sizes[int(key[7:])])
        for product in plain[1:]:
            total = total + product
        assert torch.equal(found[key], total.to(DTYPES[kind]))


# What strangers wrote into metadata

told = st.one_of(texts, json_values.map(json.dumps), st.just('{"a": "\\ud800"}'))
strange_metadata = st.dictionaries(
    st.sampled_from([RECIPE, ANCESTRY, "sd_merge_recipe", "sd_merge_models", "epoch", "format"]),
    told,
)


@given(strange_metadata)
@often
def test_strange_metadata_is_carried_on_or_refused_by_the_file_s_name(
    tmp_path: Path, metadata: dict[str, str]
) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    save_file({KEY: torch.ones(2, 2)}, path, metadata)
    out.unlink(missing_ok=True)
    try:
        merge_files({"a": path}, "a", out, "float16")
    except ValueError as refusal:
        assert str(path) in str(refusal)  # noqa: PT017  most are let pass
        assert not out.exists()
    else:
        assert torch.equal(load_file(out)[KEY], torch.ones(2, 2).half())
