"""Merging as a stream: memory, threads, rounding, how files are hashed and written."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.diffusion import writing
from stages.diffusion.header import header_bytes, read_header
from stages.lineage.ancestry import RECIPE
from stages.lineage.digests import TENSORS_HASH
from stages.merge import main
from stages.merging import hash_process, hashing
from stages.merging.expression import parse_expression
from stages.merging.files import Dtype, merge_files
from stages.merging.memory import held_bytes
from stages.merging.source import open_source
from stages.merging.terms import model_names

ROOT = Path(__file__).parent.parent
KEY = "model.diffusion_model.input_blocks.4.0.in_layers.2.weight"
OTHER = "model.diffusion_model.output_blocks.3.0.in_layers.2.weight"
MERGES = (
    "0.6*a + 0.2*b + 0.2*c",
    "slerp(a, b, 0.3)",
    "train_difference(a, b, c)",
    "ties(c, [a, b], 0.2)",
    "dare(c, a, 0.3)",
    "model_stock(c, [a, b])",
    "similarity(a, b)",
    "parts(mbw(a, b, GRAD_V), unet=0.5*a + 0.5*slerp(b, c, 0.5))",
)


def noise(folder: Path, count: int, shape: tuple[int, ...]) -> dict[str, Path]:
    """Write models of one large tensor and one small, float16, as training leaves them."""
    inputs = {}
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        tensors = {
            key: torch.randn(size, generator=generator).mul_(0.05).half()
            for key, size in ((KEY, shape), (OTHER, (77, 3)))
        }
        inputs["abcdef"[i]] = folder / f"{'abcdef'[i]}.safetensors"
        save_file(tensors, inputs["abcdef"[i]])
    return inputs


def used(inputs: Mapping[str, Path], expression: str) -> dict[str, Path]:
    return {name: inputs[name] for name in model_names(parse_expression(expression))}


@pytest.mark.parametrize("expression", MERGES)
def test_neither_threads_nor_chunks_change_a_byte_of_large_tensors(
    tmp_path: Path, expression: str
) -> None:
    """Torch shares arrays of more than 32,768 elements among threads; these have 400,000."""
    inputs = used(noise(tmp_path, 3, (500, 800)), expression)
    before = torch.get_num_threads()
    digests = set()
    for threads, chunk in ((1, 1 << 18), (2, 1 << 18), (4, 100_003), (2, 1 << 20)):
        torch.set_num_threads(threads)
        out = tmp_path / "out.safetensors"
        merge_files(inputs, expression, out, "float16", chunk_elements=chunk)
        digests.add(sha256(out.read_bytes()).hexdigest())
    torch.set_num_threads(before)
    assert len(digests) == 1


def rms(found: torch.Tensor, exact: torch.Tensor) -> float:
    return (found.double() - exact).square().mean().sqrt().item()


def test_the_graph_s_merges_round_no_more_than_one_cast(tmp_path: Path) -> None:
    """The article's deepest recipe, mix 3.1: six leaves, three merges, float32 between them.

    Its float32 steps add some 2^-24 to the 2^-11 of the last cast: nothing in four digits. The
    same steps in float16 are the comparison, and what other tools do.
    """
    paths = noise(tmp_path, 6, (600, 500))
    leaves = {name: load_file(path)[KEY].double() for name, path in paths.items()}
    mean = 0.5 * leaves["a"] + 0.5 * leaves["b"]
    exact = 0.6 * (mean + 0.5 * (leaves["c"] - leaves["d"])) + 0.2 * leaves["e"] + 0.2 * leaves["f"]
    cast = rms(exact.half(), exact)

    def in_steps(between: Dtype) -> float:
        hybrid, vodka, cocktail = (tmp_path / f"{n}.safetensors" for n in ("h", "v", "out"))
        merge_files({n: paths[n] for n in "ab"}, "0.5*a + 0.5*b", hybrid, between)
        pair = {"a": hybrid, "b": paths["c"], "c": paths["d"]}
        merge_files(pair, "a + 0.5*(b - c)", vodka, between)
        last = {"a": vodka, "b": paths["e"], "c": paths["f"]}
        merge_files(last, "0.6*a + 0.2*b + 0.2*c", cocktail, "float16")
        return rms(load_file(cocktail)[KEY], exact)

    out = tmp_path / "flat.safetensors"
    merge_files(paths, "0.6*(0.5*a + 0.5*b + 0.5*(c - d)) + 0.2*e + 0.2*f", out, "float16")
    assert rms(load_file(out)[KEY], exact) < 1.0005 * cast
    assert in_steps("float32") < 1.0005 * cast
    assert in_steps("float16") > 1.3 * cast


# Memory


MEASURED = """
import re, sys
{code}
text = open("/proc/self/status").read()
print("peak", int(re.search(r"VmHWM:\\s+(\\d+) kB", text)[1]) / 1024)
"""


def peak_mb(code: str, *arguments: str) -> float:
    """Run Python code in a process of its own, and tell its largest resident set."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED.format(code=code), *arguments],
        cwd=ROOT,
        env={**os.environ, "DVC_ROOT": arguments[-1] + "_root"} if arguments else None,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.rsplit("peak", 1)[1])


def empty_model(path: Path, count: int, elements: int) -> Path:
    """Write a file of zeros that takes no room on most disks."""
    keys = [KEY.replace("4", str(i), 1) for i in range(count)]
    header = header_bytes(dict.fromkeys(keys, ("F16", (elements // 100, 100))), {})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + count * elements * 2)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak there")
def test_memory_does_not_grow_with_the_files_nor_beyond_some_tensors(tmp_path: Path) -> None:
    """Three files of 200 MB: sums stay below 100 MB above torch, slerp below a few tensors."""
    inputs = [f"{n}={empty_model(tmp_path / n, 4, 25_000_000)}" for n in "abc"]
    bare = peak_mb("import torch")
    run = "from stages.merge import main; main(sys.argv[1:])"
    out = str(tmp_path / "out.safetensors")
    total = peak_mb(run, "--expression", "0.6*a + 0.2*b + 0.2*c", *inputs, "--out", out)
    assert total - bare < 100
    blocks = "mbw(a, b, GRAD_V) + 0*c"  # what has weight 0 is looked at for NaN
    assert peak_mb(run, "--expression", blocks, *inputs, "--out", out) - bare < 100
    arc = peak_mb(run, "--expression", "slerp(a, b, 0.5)", *inputs[:2], "--out", out)
    # A tensor of 25 M elements takes 100 MB: three, and one that the heap may have no gap for.
    assert arc - bare < 100 + 4 * 100


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak there")
@pytest.mark.parametrize(
    "expression", ["ties(c, [a, b], 0.2)", "dare(c, a, 0.3)", "similarity(a, b)"]
)
def test_a_method_takes_the_memory_that_is_told_beforehand(tmp_path: Path, expression: str) -> None:
    elements = 12_000_000
    inputs = {name: empty_model(tmp_path / name, 2, elements) for name in "abc"}
    given = [f"{name}={path}" for name, path in used(inputs, expression).items()]
    run = "from stages.merge import main; main(sys.argv[1:])"
    out = str(tmp_path / "out.safetensors")
    taken = peak_mb(run, "--expression", expression, *given, "--out", out) - peak_mb("import torch")
    told = held_bytes(parse_expression(expression), {KEY: (elements,)}) / 2**20
    tensor = elements * 4 / 2**20  # the allocator finds room for one more, or does not
    assert told - tensor < taken < told + tensor + 100


@pytest.mark.parametrize(
    ("expression", "tensors"),
    [
        ("0.6*a + 0.4*b", 0),
        ("slerp(a, b, 0.5)", 2),
        ("0*slerp(a, b, 0.5) + a", 0),
        ("ties(c, [a, b], 0.2)", 3),
        ("a + 0.5*ties(c, [a, b], 0.2)", 1 + 3),
        ("slerp(a, similarity(b, c), 0.5)", 1 + 2 + 4),
        ("parts(a, vae=slerp(a, b, 0.5))", 0),
    ],
)
def test_the_memory_of_methods_is_counted_in_their_largest_tensor(
    expression: str, tensors: int
) -> None:
    shapes = {KEY: (30, 10), OTHER: (20, 10)}
    assert held_bytes(parse_expression(expression), shapes) == tensors * 300 * 4


# Hashes of inputs


def test_a_large_file_is_hashed_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(hashing, "REMEMBERED_BYTES", 100)
    monkeypatch.setattr(hashing, "SETTLED_S", -1.0)
    read: list[Path] = []
    through = hashing._read_through

    def counted(path: Path, is_over: Any, starts: Any) -> list[str]:
        read.append(path)
        return through(path, is_over, starts)

    monkeypatch.setattr(hashing, "_read_through", counted)
    source = open_source(noise(tmp_path, 1, (50, 10))["a"])

    def hashed() -> str:
        with hashing.hashing({"a": source, "again": source}) as parents:
            found = parents()
        assert found["a"] == found["again"]
        return found["a"].sha256

    for _ in range(2):
        assert hashed() == sha256(source.path.read_bytes()).hexdigest()
    assert read == [source.path]
    content = bytearray(source.path.read_bytes())
    content[-1] ^= 1
    source.path.write_bytes(content)
    assert hashed() == sha256(content).hexdigest()
    assert len(read) == 2
    next(iter((tmp_path / ".work/hashes").iterdir())).write_text("no JSON")
    assert hashed() == sha256(content).hexdigest()


def test_the_tensors_of_a_file_with_a_recipe_are_hashed_too_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(hashing, "SETTLED_S", -1.0)
    inputs = noise(tmp_path, 2, (50, 10))
    told = tmp_path / "told.safetensors"
    merge_files(inputs, "0.5*a + 0.5*b", told, "float16")
    sources = {"told": open_source(told), "a": open_source(inputs["a"])}
    tensors = read_header(told).metadata[TENSORS_HASH].removeprefix("0x")

    def hashed() -> dict[str, Any]:
        with hashing.hashing(sources) as parents:
            return parents()

    found = hashed()
    assert found["told"].tensors_sha256 == tensors
    assert found["a"].tensors_sha256 is None
    monkeypatch.setattr(hashing, "REMEMBERED_BYTES", 100)
    assert hashed() == found
    for note in (tmp_path / ".work/hashes").iterdir():  # as it was before tensors were noted
        content = json.loads(note.read_text())
        del content["tensors_sha256"]
        note.write_text(json.dumps(content))
    assert hashed() == found
    monkeypatch.delattr(hashing, "_read_through")
    assert hashed() == found


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times might not show the next change."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(hashing, "REMEMBERED_BYTES", 100)
    source = open_source(noise(tmp_path, 1, (50, 10))["a"])
    with hashing.hashing({"a": source}) as parents:
        parents()
    assert not (tmp_path / ".work").exists()


def test_an_input_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    source = open_source(noise(tmp_path, 1, (50, 10))["a"])
    with hashing.hashing({"a": source}) as parents:
        source.path.write_bytes(source.path.read_bytes() + b" ")
        with pytest.raises(ValueError, match=r"a\.safetensors: changed while it was read"):
            parents()


@pytest.mark.parametrize("size", [0, 1, 4097, hash_process.WINDOW_BYTES + 5])
def test_a_process_hashes_files_longer_than_its_window(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(os.urandom(size))
    starts = [0, min(size, 9), size]
    hashes = [sha256(path.read_bytes()[start:]).hexdigest() for start in starts]
    assert hashing._read_through(path, threading.Event(), starts) == hashes


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, r"\(FileNotFoundError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGBUS)", f"signal {int(signal.SIGBUS)}"),
    ],
)
def test_a_hash_that_failed_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, words: str
) -> None:
    """SIGBUS is what the kernel sends for pages that a file no longer has."""
    if script:
        (tmp_path / "script.py").write_text(script)
        monkeypatch.setattr(hash_process, "__file__", str(tmp_path / "script.py"))
    with pytest.raises(ValueError, match=rf"gone: changed or became unreadable.*{words}"):
        hashing._read_through(tmp_path / "gone", threading.Event(), [0])


def test_a_merge_that_fails_waits_for_no_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that hashes opens a pipe that nobody writes to: it would never end."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    source = open_source(noise(tmp_path, 1, (50, 10))["a"])
    monkeypatch.setattr(hashing, "REMEMBERED_BYTES", 0)
    source.path.unlink()
    os.mkfifo(source.path)
    with pytest.raises(ZeroDivisionError), hashing.hashing({"a": source}):
        _ = 1 / 0


# Writing


@pytest.mark.parametrize("is_direct", [True, False])
@pytest.mark.parametrize(
    "size", [0, 1, 4095, writing.BLOCK_BYTES - 40, 5 * writing.BLOCK_BYTES + 7]
)
def test_an_output_holds_what_was_written_and_knows_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_direct: bool, size: int
) -> None:
    if not is_direct:
        monkeypatch.delattr(os, "O_DIRECT", raising=False)
    content = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    path = tmp_path / "out"
    with writing.writing(path, 40, size + 40) as output:
        for start in range(0, size, 1_000_003):
            output.write(content[start : start + 1_000_003])
        assert output.finish() == sha256(content).hexdigest()
        output.write_header(b"h" * 40)
    assert path.read_bytes() == b"h" * 40 + content


def test_a_header_longer_than_a_block_is_no_tensor_either(tmp_path: Path) -> None:
    length, content = writing.BLOCK_BYTES + 24, os.urandom(writing.BLOCK_BYTES)
    path = tmp_path / "out"
    with writing.writing(path, length, length + len(content)) as output:
        output.write(content)
        assert output.finish() == sha256(content).hexdigest()
        output.write_header(b"h" * length)
    assert path.read_bytes() == b"h" * length + content


def test_where_direct_writes_fail_midway_the_cache_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def short(descriptor: int, content: memoryview) -> int:
        return write(descriptor, content[: len(content) // 3 + 1])  # ends within a page

    content = os.urandom(3 * writing.BLOCK_BYTES + 5)
    path = tmp_path / "out"
    with writing.writing(path, 0, len(content)) as output:
        monkeypatch.setattr(os, "write", short)
        output.write(content)
        output.finish()
    assert path.read_bytes() == content


# Recipes of recipes

PARAMS = """
merge:
  mixes:
    hybrid:
      expression: 0.5*a + 0.5*b
      dtype: float32
      inputs: [{{name: a, file: {a}}}, {{name: b, file: {b}}}]
  differences:
    vodka:
      expression: a + 0.5*(b - c)
      dtype: float32
      inputs:
        - {{name: a, file: "recipe:merge.mixes.hybrid"}}
        - {{name: b, file: {c}}}
        - {{name: c, file: {a}}}
  cocktails:
    last:
      expression: 0.6*a + 0.4*b
      dtype: float16
      inputs:
        - {{name: a, file: "recipe:merge.differences.vodka"}}
        - {{name: b, file: {d}}}
    ring:
      expression: a
      dtype: float16
      inputs: [{{name: a, file: "recipe:merge.cocktails.ring"}}]
"""


def test_a_recipe_of_recipes_is_one_sum_of_their_files(tmp_path: Path) -> None:
    paths = noise(tmp_path, 4, (40, 30))
    params = tmp_path / "params.yaml"
    params.write_text(PARAMS.format(**paths))
    out, direct = tmp_path / "out.safetensors", tmp_path / "direct.safetensors"
    main(["--recipe", "merge.cocktails.last", "--out", str(out), "--params", str(params)])
    flat = "0.6*(0.5*a + 0.5*b + 0.5*(c - a)) + 0.4*d"
    merge_files(paths, flat, direct, "float16")
    for key in (KEY, OTHER):
        assert torch.equal(load_file(out)[key], load_file(direct)[key])
    recipe = json.loads(read_header(out).metadata[RECIPE])
    assert sorted(recipe["weights"].values()) == ["0", "0.3", "0.3", "0.4"]
    assert len(recipe["inputs"]) == 4, "the file that two recipes name has one name"


def test_a_recipe_of_recipes_may_be_typed(tmp_path: Path) -> None:
    paths = noise(tmp_path, 4, (40, 30))
    params = tmp_path / "params.yaml"
    params.write_text(PARAMS.format(**paths))
    out = tmp_path / "out.safetensors"
    given = ["m=recipe:merge.mixes.hybrid", f"d={paths['d']}"]
    options = ["--out", str(out), "--params", str(params)]
    main(["--expression", "slerp(m, d, 0.5)", *given, *options])
    expression = json.loads(read_header(out).metadata[RECIPE])["expression"]
    assert expression == "slerp((0.5*m_a + 0.5*m_b), d, 0.5)"


def test_a_recipe_made_of_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRACEBACK", raising=False)
    params = tmp_path / "params.yaml"
    params.write_text(PARAMS.format(a="a", b="b", c="c", d="d"))
    out = ["--out", str(tmp_path / "out.safetensors"), "--params", str(params)]
    with pytest.raises(SystemExit, match="is made of itself"):
        main(["--recipe", "merge.cocktails.ring", *out])


@pytest.mark.parametrize("inputs", ["", "    inputs:\n    - {name: b, file: b.safetensors}\n"])
def test_a_recipe_that_stands_for_an_input_names_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: str
) -> None:
    """Its `a` is not the `a` beside it."""
    monkeypatch.delenv("TRACEBACK", raising=False)
    paths = noise(tmp_path, 2, (4, 3))
    params = tmp_path / "params.yaml"
    params.write_text(
        "mixes:\n  open:\n    expression: 0.5*a + 0.5*b\n    dtype: float16\n" + inputs
    )
    given = ["m=recipe:mixes.open", *(f"{name}={path}" for name, path in paths.items())]
    options = ["--out", str(tmp_path / "out.safetensors"), "--params", str(params)]
    with pytest.raises(SystemExit, match=r"mixes\.open stands for the input 'm', but .* 'a'"):
        main(["--expression", "0.4*m + 0.3*a + 0.3*b", *given, *options])
