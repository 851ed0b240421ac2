"""Merge methods against their papers' arithmetic, and what expressions mean at each tensor."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.diffusion.header import header_bytes, read_header
from stages.diffusion.model import load_models
from stages.diffusion.single_file import UNET, normal_keys
from stages.merge import main
from stages.merging.blocks import at_key, block_of, part_of
from stages.merging.expression import parse_expression
from stages.merging.files import merge_files
from stages.merging.methods import (
    _least_of_largest,
    dare,
    model_stock,
    similarity,
    slerp,
    ties,
    train_difference,
)
from stages.merging.source import CONV_IN, open_source
from stages.merging.table import METHODS
from stages.merging.terms import model_weights
from tests.test_single_file import save
from tests.tiny_sd import TinySD, tiny_sd

__all__ = ["tiny_sd"]  # a fixture is found by its name

SIGNS = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1], [-1, 1, -1, 1]])
A = SIGNS * torch.arange(1.0, 17).view(4, 4)
B = SIGNS.T.contiguous() * torch.arange(16.0, 0, -1).view(4, 4) / 2
BASE = torch.ones(4, 4)
KEYS = (
    "model.diffusion_model.time_embed.0.weight",
    "model.diffusion_model.input_blocks.4.0.in_layers.2.weight",
    "model.diffusion_model.middle_block.1.proj_in.weight",
    "model.diffusion_model.output_blocks.11.0.in_layers.2.weight",
    "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    "first_stage_model.decoder.conv_in.weight",
)


# Methods


def test_slerp_keeps_the_length_of_orthogonal_tensors_and_meets_its_ends() -> None:
    a, b = torch.zeros(4, 4), torch.zeros(4, 4)
    a[0, 0], b[1, 2] = 2.0, 2.0
    half = slerp(a.clone(), b.clone(), 0.5)
    assert half.norm().item() == pytest.approx(2.0)
    assert half[0, 0] == half[1, 2] == pytest.approx(math.sqrt(2))
    assert slerp(a.clone(), b.clone(), 0.0) == pytest.approx(a.numpy())
    assert slerp(a.clone(), b.clone(), 1.0) == pytest.approx(b.numpy(), abs=1e-6)


def test_slerp_is_shoemakes_formula_in_double_precision() -> None:
    a, b, t = A.double().numpy(), B.double().numpy(), 0.3
    angle = np.arccos((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    expected = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    assert slerp(A.clone(), B.clone(), t).numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("cosine", "is_arc"), [(0.999, True), (0.9996, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_slerp_goes_in_an_arc_up_to_a_cosine_of_0_9995(
    cosine: float, is_arc: bool, sign: int
) -> None:
    a, b = torch.zeros(4, 4), torch.zeros(4, 4)
    a[0, 0], b[0, 0], b[1, 2] = 1.0, sign * cosine, math.sqrt(1 - cosine**2)
    length = 1.0 if is_arc else (a + b).norm().item() / 2
    assert slerp(a, b, 0.5).norm().item() == pytest.approx(length, rel=1e-5)


@pytest.mark.parametrize("other", [A * 3, -A, torch.zeros(4, 4)])
def test_slerp_of_parallel_or_zero_tensors_is_a_line(other: Tensor) -> None:
    assert slerp(A.clone(), other.clone(), 0.25).numpy() == pytest.approx(
        (0.75 * A + 0.25 * other).numpy()
    )


def test_train_difference_adds_what_was_learned_where_it_is_far() -> None:
    a, b, c = (
        torch.tensor([0.0, 0, 5, 1]),
        torch.tensor([2.0, 1, 5, 1]),
        torch.tensor([0.0, 3, 5, 0]),
    )
    # |b - a| / (|b - c| + |b - a|): 2/4, 1/3, 0/0, 0/1
    expected = [1.8 * 2 * 0.5, 1.8 * -2 / 3, 5, 1]
    assert train_difference(a, b, c, 1.0).tolist() == pytest.approx(expected)


def test_ties_trims_elects_and_averages() -> None:
    base = torch.zeros(4)
    models = [torch.tensor([4.0, -1, 3, 0.1]), torch.tensor([2.0, 3, -5, 0.2])]
    # the largest half: [4, 0, 3, 0] and [0, 3, -5, 0]; signs +, +, -
    assert ties(base.clone(), [m.clone() for m in models], 0.5, 1.0).tolist() == [4, 3, -5, 0]
    assert ties(base + 1, [m + 1 for m in models], 0.5, 0.5).tolist() == [3, 2.5, -1.5, 1]


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(300_001, generator=torch.Generator().manual_seed(1)),
        torch.randn(5_000, generator=torch.Generator().manual_seed(2)).half().float(),
        torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 2.0, -2.0, 2.0, 2.0000002]),
        torch.tensor([1.0, float("inf"), float("nan"), -float("inf"), 2.0, float("nan")]),
        torch.zeros(7),
    ],
    ids=["normal", "half", "extreme", "not finite", "zero"],
)
def test_the_least_of_the_largest_is_that_of_a_sorted_copy(values: Tensor) -> None:
    found, size = values.clone(), len(values)
    ordered = np.sort(values.abs().numpy())
    for count in (1, 2, 3, size // 5 or 1, size // 2, size - 1, size):
        least = _least_of_largest(found, count)
        assert np.array_equal(least, ordered[size - count], equal_nan=True)
    assert torch.equal(found.view(torch.int32), values.view(torch.int32))


def test_ties_that_keeps_all_averages_those_that_agree() -> None:
    models = [torch.tensor([1.0, -1]), torch.tensor([3.0, 2]), torch.tensor([-1.0, 2])]
    assert ties(torch.zeros(2), models, 1.0, 1.0).tolist() == [2, 2]


def test_ties_that_keeps_nothing_is_the_base() -> None:
    assert torch.equal(ties(BASE.clone(), [A.clone()], 0.0, 1.0), BASE)


def test_dare_keeps_the_share_and_the_expectation() -> None:
    generator = torch.Generator().manual_seed(1)
    base, a = torch.zeros(100_000), torch.ones(100_000)
    result = dare(base, a, 0.25, generator)
    assert set(result.tolist()) == {0.0, 4.0}
    assert result.mean().item() == pytest.approx(1.0, abs=0.03)


def test_model_stock_goes_by_the_angle_between_the_differences() -> None:
    base = torch.zeros(2)
    right, up = torch.tensor([1.0, 0]), torch.tensor([0.0, 1])
    diagonal = torch.tensor([1.0, 1])
    assert model_stock(base.clone(), [right.clone(), up.clone()]).tolist() == [0, 0]
    assert model_stock(base.clone(), [right.clone(), right.clone()]).tolist() == [1, 0]
    t = 2 * math.sqrt(0.5) / (1 + math.sqrt(0.5))
    result = model_stock(base.clone(), [right.clone(), diagonal.clone()])
    assert result.tolist() == pytest.approx([t, t / 2])
    assert model_stock(BASE.clone(), [A.clone()]).numpy() == pytest.approx(A.numpy())


def test_similarity_takes_the_second_where_they_differ() -> None:
    a = torch.tensor([[1.0, 1], [0, 0]])
    b = torch.tensor([[2.0, 0], [0, 3]])  # the first column points alike, the second does not
    assert similarity(a.clone(), b.clone(), 0.0).tolist() == [[1, 0], [0, 3]]
    assert similarity(a.clone(), b.clone(), 1.0).tolist() == b.tolist()
    assert similarity(a.clone(), b.clone(), -1.0).tolist() == a.tolist()


# What expressions mean


def test_blocks_are_numbered_as_block_weights_are() -> None:
    assert [block_of(key) for key in KEYS] == [1, 5, 13, 25, 0, 0]
    assert block_of("model.diffusion_model.out.2.weight") == 25
    for first in ("time_embed.0.weight", "label_emb.0.0.weight"):  # the latter is SDXL's
        assert block_of(f"model.diffusion_model.{first}") == 1
    assert [part_of(key) for key in KEYS] == ["unet"] * 4 + ["text_encoder", "vae"]


def test_block_weights_and_parts_come_to_plain_sums_at_each_key() -> None:
    blocks = ", ".join(str(i / 25) for i in range(26))
    weights = parse_expression(f"mbw(a, b, [{blocks}])")
    seconds = [at_key(weights, key).get("b") for key in KEYS]
    assert seconds == [Fraction(i, 25) for i in (1, 5, 13, 25, 0, 0)]
    weights = parse_expression("parts(0.5*a + 0.5*b, text_encoder=a, vae=slerp(a, v, 1))")
    assert at_key(weights, KEYS[0]) == parse_expression("0.5*a + 0.5*b")
    assert at_key(weights, KEYS[4]) == parse_expression("a")
    assert at_key(weights, KEYS[5]) == parse_expression("slerp(a, v, 1)")
    nested = parse_expression("0.5*mbw(a, parts(b, vae=a), FLAT_50) + 0.5*c")
    assert at_key(nested, KEYS[1]) == parse_expression("0.25*a + 0.25*b + 0.5*c")
    assert at_key(nested, KEYS[5]) == parse_expression("0.5*a + 0.5*c")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("slerp(a, b, 0.3)", {"a": "7/10", "b": "3/10"}),
        ("train_difference(a, b, c)", {"a": "1", "b": "1", "c": "-1"}),
        ("ties(x, [a, b], 0.5, 0.5)", {"x": "1/2", "a": "1/4", "b": "1/4"}),
        ("mbw(a, b, GRAD_V)", {"a": "1/2", "b": "1/2"}),
        ("parts(a, unet=b)", {"a": "0", "b": "1"}),
        ("0.5*dare(x, a, 0.1) + 0.5*c", {"x": "0", "a": "1/2", "c": "1/2"}),
    ],
)
def test_each_model_has_a_share(text: str, expected: dict[str, str]) -> None:
    assert model_weights(parse_expression(text)) == {n: Fraction(w) for n, w in expected.items()}


# Files


def files(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Path]:
    paths = {}
    for name, tensor in tensors.items():
        paths[name] = folder / f"{name}.safetensors"
        save_file({key: tensor.clone().contiguous() for key in KEYS}, paths[name])
    return paths


CALLS: dict[str, tuple[str, Callable[[], Tensor]]] = {
    "slerp": ("slerp(a, b, 0.3)", lambda: slerp(A.clone(), B.clone(), 0.3)),
    "train_difference": (
        "train_difference(a, b, x, 0.5)",
        lambda: train_difference(A.clone(), B.clone(), BASE.clone(), 0.5),
    ),
    "ties": ("ties(x, [a, b], 0.5)", lambda: ties(BASE.clone(), [A.clone(), B.clone()], 0.5, 1)),
    "model_stock": (
        "model_stock(x, [a, b])",
        lambda: model_stock(BASE.clone(), [A.clone(), B.clone()]),
    ),
    "similarity": ("similarity(a, b, 0.1)", lambda: similarity(A.clone(), B.clone(), 0.1)),
}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_a_method_in_an_expression_is_the_function(tmp_path: Path, method: str, chunk: int) -> None:
    expression, function = CALLS[method]
    inputs = files(tmp_path, {"a": A, "b": B, "x": BASE})
    inputs = {name: path for name, path in inputs.items() if name in expression.split("(", 1)[1]}
    out = tmp_path / "out.safetensors"
    merge_files(inputs, expression, out, "float32", chunk_elements=chunk)
    assert torch.equal(load_file(out)[KEYS[1]], function())
    merge_files(inputs, f"0.5*{expression} + 0.5*a", out, "float32", chunk_elements=chunk)
    assert torch.equal(load_file(out)[KEYS[1]], (0.5 * function()).add_(A * 0.5))


def test_every_method_is_tried_here() -> None:
    assert set(METHODS) == {*CALLS, "dare", "mbw", "parts"}


def test_dare_drops_the_same_elements_each_time_and_others_in_other_tensors(tmp_path: Path) -> None:
    inputs = files(tmp_path, {"x": torch.zeros(4, 64), "a": torch.ones(4, 64)})
    out = tmp_path / "out.safetensors"
    hashes = set()
    for chunk in (5, 1 << 20):
        merge_files(inputs, "dare(x, a, 0.5, 7)", out, "float32", chunk_elements=chunk)
        hashes.add(sha256(out.read_bytes()).hexdigest())
    assert len(hashes) == 1
    tensors = load_file(out)
    assert not torch.equal(tensors[KEYS[0]], tensors[KEYS[1]])
    inputs["b"] = inputs["a"]
    merge_files(inputs, "0.5*dare(x, a, 0.5, 7) + 0.5*dare(x, b, 0.5, 7)", out, "float32")
    assert set(load_file(out)[KEYS[0]].flatten().tolist()) == {0.0, 1.0, 2.0}, "one mask for both"
    del inputs["b"]
    merge_files(inputs, "dare(x, a, 0.5, 8)", out, "float32")
    assert not torch.equal(load_file(out)[KEYS[0]], tensors[KEYS[0]])


def test_what_dare_draws_does_not_depend_on_the_inputs_names(tmp_path: Path) -> None:
    inputs = files(tmp_path, {"x": torch.zeros(4, 64), "a": torch.ones(4, 64)})
    found = []
    for x, a in (("x", "a"), ("a", "x"), ("model1", "model0"), ("unet", "dare")):
        out = tmp_path / "out.safetensors"
        expression = f"dare({x}, {a} + 0.1*slerp({x}, {a}, 0.5), 0.5, 7)"
        merge_files({x: inputs["x"], a: inputs["a"]}, expression, out, "float32")
        found.append(load_file(out)[KEYS[0]])
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_vae_is_baked_in_and_blocks_are_weighed(tmp_path: Path) -> None:
    inputs = files(tmp_path, {"a": A, "b": B, "v": BASE})
    out = tmp_path / "out.safetensors"
    merge_files(inputs, "parts(mbw(a, b, GRAD_V), vae=v)", out, "float32")
    tensors = load_file(out)
    assert torch.equal(tensors[KEYS[5]], BASE)
    assert torch.equal(tensors[KEYS[2]], A)  # the middle block
    assert torch.equal(tensors[KEYS[3]], B)  # OUT11
    assert torch.equal(tensors[KEYS[4]], A)  # BASE
    assert tensors[KEYS[1]].numpy() == pytest.approx((A / 3 + B * 2 / 3).numpy())  # IN04


def test_an_inpainting_model_keeps_its_own_channels_and_must_come_first(tmp_path: Path) -> None:
    inpainting, plain = torch.randn(4, 9, 3, 3), torch.randn(4, 4, 3, 3)
    inputs = {"a": tmp_path / "a.safetensors", "b": tmp_path / "b.safetensors"}
    save_file({CONV_IN: inpainting}, inputs["a"])
    save_file({CONV_IN: plain}, inputs["b"])
    out = tmp_path / "out.safetensors"
    merge_files(inputs, "0.25*a + 0.75*b", out, "float32")
    result = load_file(out)[CONV_IN]
    assert torch.equal(result[:, 4:], inpainting[:, 4:])
    assert torch.equal(result[:, :4], (0.25 * inpainting[:, :4]).add_(plain * 0.75))
    with pytest.raises(ValueError, match="must be the first"):
        merge_files(inputs, "0.75*b + 0.25*a", out, "float32")


@pytest.mark.parametrize(
    ("expression", "mask_shares"),
    [
        ("0.5*a + 0.5*b", (0.5, 0.5)),  # all alike: merged as they are
        ("0.5*a + 0.25*b + 0.25*c", (2 / 3, 1 / 3)),
        ("a + 0.5*(b - c)", (2 / 3, 1 / 3)),
        ("parts(a, unet=0.25*b + 0.75*c)", (0, 1)),
        ("slerp(a, 0.5*b + 0.5*c, 0.5)", (2 / 3, 1 / 3)),
    ],
)
def test_several_inpainting_models_share_the_channels_that_others_lack(
    tmp_path: Path, expression: str, mask_shares: tuple[float, float]
) -> None:
    a, b = torch.randn(4, 9, 3, 3), torch.randn(4, 9, 3, 3)
    tensors = {"a": a, "b": b, "c": torch.randn(4, 4, 3, 3)}
    inputs = {}
    for name, tensor in tensors.items():
        if f"{name}" in expression.replace("parts", "").replace("slerp", ""):
            inputs[name] = tmp_path / f"{name}.safetensors"
            save_file({CONV_IN: tensor}, inputs[name])
    out = tmp_path / "out.safetensors"
    merge_files(inputs, expression, out, "float32")
    mask = load_file(out)[CONV_IN][:, 4:]
    assert torch.allclose(mask, mask_shares[0] * a[:, 4:] + mask_shares[1] * b[:, 4:], atol=1e-6)


def test_a_file_of_averages_alone_is_read_as_its_unet(tmp_path: Path, tiny_sd: TinySD) -> None:
    whole = save(tiny_sd, tmp_path / "whole.safetensors")
    tensors = load_file(whole)
    averaged = {
        "model_ema." + key.removeprefix("model.").replace(".", "")
        if key.startswith(UNET)
        else key: t
        for key, t in tensors.items()
    }
    alone = tmp_path / "ema.safetensors"
    save_file(averaged, alone)
    assert normal_keys(read_header(alone).tensors).keys() == normal_keys(tensors).keys()
    out = tmp_path / "out.safetensors"
    merge_files({"a": alone, "b": whole}, "0.5*a + 0.5*b", out, "float32")
    merged = load_file(out)
    for key in open_source(whole).tensors:
        assert torch.equal(merged[key], tensors[key].float()), key
    both = {**tensors, **averaged}
    assert all(not key.startswith("model_ema") for key in normal_keys(both).values())


def test_a_merge_by_a_method_loads_in_the_networks(tmp_path: Path, tiny_sd: TinySD) -> None:
    a, b = save(tiny_sd, tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    tiny_sd.unet.conv_out.bias.data.add_(1)
    save(tiny_sd, b)
    out = tmp_path / "out.safetensors"
    merge_files({"a": a, "b": b}, "slerp(a, b, 0.5)", out, "float16")
    assert load_models(out, tiny_sd.config).unet.conv_out.bias.isfinite().all()


# The command line


def test_a_dry_run_checks_and_tells_but_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = files(tmp_path, {"a": A, "b": B})
    out = tmp_path / "out.safetensors"
    given = [f"{name}={path}" for name, path in inputs.items()]
    main(["--expression", "0.5*(0.5*a + 0.5*b) + b", *given, "--out", str(out), "--dry-run"])
    told = capsys.readouterr()
    assert not out.exists()
    assert "0.25*a + 1.25*b" in told.out
    assert "It takes about" in told.out
    assert re.search(r"It writes 0\.00 GB, 6 tensors; [\d.]+ GB are free there", told.out)
    assert "sum to 1.5, not to 1" in told.err
    with pytest.raises(SystemExit, match="no file is given for it"):
        main(["--expression", "a + c - b", *given, "--out", str(out), "--dry-run"])


def test_a_dry_run_says_what_each_part_comes_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = files(tmp_path, {"a": A, "b": B, "v": BASE})
    out = tmp_path / "new" / "out.safetensors"
    given = [f"{name}={path}" for name, path in inputs.items()]
    expression = "parts(0.5*(a + b), unet=mbw(a, b, FLAT_25), vae=v)"
    main(["--expression", expression, *given, "--out", str(out), "--dry-run"])
    told = capsys.readouterr().out
    assert "  IN00 to OUT11: 0.75*a + 0.25*b\n" in told
    assert "  text encoder: 0.5*a + 0.5*b\n" in told
    assert "  VAE: v\n" in told
    assert not out.parent.exists()


def test_a_dry_run_tells_the_memory_of_methods_and_nothing_of_sums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = files(tmp_path, {"a": torch.ones(500, 1000), "b": torch.ones(500, 1000)})
    given = [f"{name}={path}" for name, path in inputs.items()]
    out = str(tmp_path / "out.safetensors")
    main(["--expression", "slerp(a, b, 0.3)", *given, "--out", out, "--dry-run"])
    assert "Its methods hold up to 4.0 MB of tensors at a time.\n" in capsys.readouterr().out
    main(["--expression", "0.5*a + 0.5*b", *given, "--out", out, "--dry-run"])
    assert "at a time" not in capsys.readouterr().out


def test_a_dry_run_tells_more_time_for_slower_methods(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = {name: tmp_path / f"{name}.safetensors" for name in "ab"}
    header = header_bytes({"weight": ("F16", (300_000_000,))}, {})
    for path in inputs.values():
        path.write_bytes(header)
        os.truncate(path, len(header) + 600_000_000)  # sparse, and a dry run does not read it
    given = [f"{name}={path}" for name, path in inputs.items()]
    out, told = str(tmp_path / "c.safetensors"), {}
    for expression in ("0.5*a + 0.5*b", "slerp(a, b, 0.3)", "0.5*slerp(similarity(a, b), b, 0.3)"):
        main(["--expression", expression, *given, "--out", out, "--dry-run"])
        told[expression] = re.findall(r"It takes about (\d+) s", capsys.readouterr().out)
    assert list(told.values()) == [["1"], ["2"], ["4"]]


def test_a_dry_run_knows_that_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRACEBACK", raising=False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    inputs = files(tmp_path, {"a": A})
    out = str(tmp_path / "out.safetensors")
    dry_run = ["--expression", "a", f"a={inputs['a']}", "--out", out, "--dry-run"]
    with pytest.raises(SystemExit, match="No room"):
        main(dry_run)
    left = tmp_path / "out.safetensors.partial"  # by a killed merge, and taken away by the next
    left.write_bytes(bytes(100_000))
    main(dry_run)
    assert left.stat().st_size == 100_000


def test_inspect_shows_a_file_as_it_is_also_one_that_cannot_be_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "field.safetensors"
    tensors = {
        KEYS[1]: torch.ones(2, dtype=torch.float64),
        KEYS[4]: torch.ones(2).to(torch.float8_e4m3fn),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.zeros(1, 7),
        "model_ema.diffusion_modelout2weight": torch.ones(2),
        "betas": torch.ones(3),
    }
    save_file(tensors, path, {"modelspec.title": "Field", "long": "x" * 300})
    main(["inspect", str(path)])
    told = capsys.readouterr().out
    for words in (
        "5 tensors",
        "averages (EMA), for where the UNet is missing: 1 key\n",
        "position_ids are stored as F32, not as the integers that they are",
        "left out of merges: 1 key, such as betas",
        "1 tensor of F64, which is not merged",
        "1 tensor of F8_E4M3, which is not merged",
        "modelspec.title: Field",
        "x… (300)",
    ):
        assert words in told, (words, told)


def test_inspect_shows_parts_dtypes_and_parents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = files(tmp_path, {"a": A, "b": B})
    out = tmp_path / "out.safetensors"
    merge_files(inputs, "slerp(a, b, 0.5)", out, "float16", name="arc")
    main(["inspect", str(out)])
    told = capsys.readouterr().out
    assert "6 tensors" in told
    assert "vae" in told
    assert "F16" in told
    assert "made by merge: slerp(a, b, 0.5)" in told
    assert sha256(inputs["a"].read_bytes()).hexdigest() in told
    with pytest.raises(SystemExit, match="no such file"):
        main(["inspect", str(tmp_path / "nowhere.safetensors")])
    with pytest.raises(SystemExit, match="is a folder"):
        main(["inspect", str(tmp_path)])
