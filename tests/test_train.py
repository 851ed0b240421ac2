"""Training: it learns, it may be killed at any moment, and it says what is wrong."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from dadaptation import DAdaptAdam as Reference  # type: ignore[import-untyped]
from PIL import Image
from safetensors import safe_open

from stages.diffusion.ancestry import read_lineage
from stages.diffusion.dataset import Example, encode
from stages.diffusion.header import read_header
from stages.diffusion.loop import Trained, train
from stages.diffusion.model import Models, load_models, save_single_file
from stages.diffusion.optimizers import DAdaptAdam
from stages.diffusion.train_params import TrainParams
from stages.harness.files import sha256_bytes, sha256_file
from stages.images.bucket import Bucket
from stages.train import main
from tests.tiny_sd import make_tiny_sd

ROOT = Path(__file__).parent.parent
PARAMS = TrainParams(
    resolution=16,
    bucket_step_px=8,
    max_aspect=2.0,
    learning_rate=2e-3,
    text_encoder_learning_rate=0.0,
    optimizer="adamw",
    weight_decay=0.01,
    batch_size=4,
    gradient_accumulation=2,
    max_epochs=3,
    checkpoint_every_epochs=2,
    caption_dropout=0.1,
    validation_timesteps=2,
    stop_patience=0,
    seed=1,
    precision="fp32",
    max_gradient_norm=1.0,
    ema_decay=0.5,
    min_snr_gamma=5.0,
    noise_offset=0.05,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep two test processes from waiting for each other's threads; bits depend on the count."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder with base.safetensors and config/."""
    folder = tmp_path_factory.mktemp("base")
    tiny = make_tiny_sd(folder / "config", attention=(True,))
    save_single_file(
        folder / "base.safetensors", tiny.unet, tiny.vae, tiny.text_encoder, {"name": "tiny"}
    )
    return folder


def models(base: Path) -> Models:
    return load_models(base / "base.safetensors", base / "config")


def picture(seed: int, width: int = 16, height: int = 16) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures(count: int, first: int = 0) -> list[Example]:
    """Make pictures of two shapes."""
    return [
        Example(f"{i:03}", f"cat {i % 3}", picture(i, 32 if i % 3 else 16))
        for i in range(first, first + count)
    ]


EXAMPLES, HELD_OUT = pictures(15), pictures(6, first=100)


def hashes(trained: Trained) -> dict[int, str]:
    return {epoch: sha256_file(path) for epoch, path in trained.weights.items()}


def start(base: Path, scratch: Path, params: TrainParams = PARAMS, **others: object) -> Trained:
    return train(models(base), EXAMPLES, HELD_OUT, params, scratch, **others)  # type: ignore[arg-type]


def test_training_lowers_the_loss_and_keeps_every_nth_and_the_best(
    base: Path, tmp_path: Path
) -> None:
    trained = start(base, tmp_path)
    history = trained.history
    assert history.best == 3
    assert history.change(3).high < 0
    assert sorted(trained.weights) == [2, 3]
    assert len(history) == 1 + len(history.train_losses) == 4
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == [
        "epoch_002.safetensors",
        "epoch_003.safetensors",
    ]
    # what was measured is what was kept
    again = train(
        load_models(trained.weights[3], base / "config"),
        EXAMPLES,
        HELD_OUT,
        replace(PARAMS, max_epochs=1),
        tmp_path / "again",
    )
    assert again.history.means[0] == pytest.approx(history.means[3], rel=1e-3)  # float16
    with safe_open(trained.weights[2], "pt") as file:
        assert file.metadata()["epoch"] == "2"


def test_order_of_examples_and_batch_size_of_validation_do_not_matter(
    base: Path, tmp_path: Path
) -> None:
    once = start(base, tmp_path / "a")
    shuffled = random.Random(0).sample(EXAMPLES, len(EXAMPLES))
    twice = train(models(base), shuffled, HELD_OUT[::-1], PARAMS, tmp_path / "b")
    assert hashes(once) == hashes(twice)
    larger = start(base, tmp_path / "c", replace(PARAMS, batch_size=16, max_epochs=1))
    assert larger.history.errors[0] == pytest.approx(once.history.errors[0], rel=1e-4)


def test_accumulated_gradients_are_those_of_one_large_batch(base: Path, tmp_path: Path) -> None:
    """Of one bucket, 16 in a step: 4 x 4, or 1 x 16."""
    same_shape = [replace(e, image=picture(i)) for i, e in enumerate(pictures(16))]
    params = replace(PARAMS, max_epochs=1, ema_decay=0.0)
    losses = [
        train(
            models(base),
            same_shape,
            HELD_OUT,
            replace(params, batch_size=size, gradient_accumulation=times),
            tmp_path / str(size),
        ).history.means[1]
        for size, times in ((4, 4), (16, 1))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "dadaptation"])
def test_a_run_killed_again_and_again_ends_with_the_weights_of_an_unbroken_one(
    base: Path, tmp_path: Path, optimizer: str
) -> None:
    rate = 1e-3 if optimizer == "adamw" else 1.0
    params = replace(
        PARAMS, optimizer=optimizer, learning_rate=rate, text_encoder_learning_rate=rate
    )
    unbroken = start(base, tmp_path / "unbroken", params)
    code = (
        "import sys, json; from stages.harness.threads import wait_politely; wait_politely();"
        "import torch; from pathlib import Path; import tests.test_train as t;"
        "torch.set_num_threads(1); print('ready', flush=True);"
        "t.start(Path(sys.argv[1]), Path(sys.argv[2]), t.TrainParams(**json.loads(sys.argv[3])),"
        " save_every_s=0, say=lambda line: print(line, flush=True))"
    )
    scratch = tmp_path / "killed"
    command = [sys.executable, "-c", code, str(base), str(scratch), json.dumps(asdict(params))]
    for steps in (2, 4):  # of 9: within the second epoch, and the third
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            wait_for(scratch / "checkpoints" / f"step_{steps:09}.safetensors", process)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    resumed: list[str] = []
    assert hashes(start(base, scratch, params, say=resumed.append)) == hashes(unbroken)
    assert any("going on in epoch" in line for line in resumed)


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a file, or one that sorts after it, stands in its folder."""
    deadline = time.monotonic() + 60
    while not any(p.name >= path.name for p in path.parent.glob("step_*.safetensors")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, f"no {path.name} in time"
        time.sleep(0.005)


def test_a_polite_signal_saves_first(base: Path, tmp_path: Path) -> None:
    def terminate(line: str) -> None:
        if line.startswith("epoch 1:"):
            os.kill(os.getpid(), signal.SIGTERM)

    unbroken = start(base, tmp_path / "unbroken")
    with pytest.raises(SystemExit, match="143"):
        start(base, tmp_path / "stopped", say=terminate)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert hashes(start(base, tmp_path / "stopped")) == hashes(unbroken)


def test_a_checkpoint_cut_short_is_passed_over_aloud(base: Path, tmp_path: Path) -> None:
    unbroken = start(base, tmp_path)
    newest = max((tmp_path / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-10])
    lines: list[str] = []
    assert hashes(start(base, tmp_path, say=lines.append)) == hashes(unbroken)
    assert any("passing over" in line and "cut short" in line for line in lines)


def test_more_epochs_go_on_and_fewer_end_as_a_fresh_run_would(base: Path, tmp_path: Path) -> None:
    long = replace(PARAMS, max_epochs=5)
    start(base, tmp_path / "a")
    lines: list[str] = []
    longer = start(base, tmp_path / "a", long, say=lines.append)
    assert any("going on in epoch 4" in line for line in lines)
    assert hashes(longer) == hashes(start(base, tmp_path / "b", long))
    # epoch 3, the best of three, was dropped when epoch 4 was better
    assert hashes(start(base, tmp_path / "a")) == hashes(start(base, tmp_path / "c"))


def test_a_rate_far_too_high_is_stopped_early(base: Path, tmp_path: Path) -> None:
    params = replace(
        PARAMS, learning_rate=0.5, ema_decay=0.0, stop_patience=2, max_epochs=9, weight_decay=0.0
    )
    trained = start(base, tmp_path, params)
    assert len(trained.history) - 1 == 2
    assert trained.weights  # the best of the bad ones, for a person to see


def test_a_scratch_folder_of_another_run_is_refused(base: Path, tmp_path: Path) -> None:
    start(base, tmp_path, replace(PARAMS, max_epochs=1))
    for params, examples in ((replace(PARAMS, seed=2), EXAMPLES), (PARAMS, EXAMPLES[1:])):
        with pytest.raises(ValueError, match="holds another run"):
            train(models(base), examples, HELD_OUT, params, tmp_path)


def test_our_dadaptation_equals_the_package_step_by_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = [torch.randn(6, 5, generator=generator), torch.randn(7, generator=generator)]
    ours = [weight.clone().requires_grad_() for weight in theirs]
    theirs = [weight.requires_grad_() for weight in theirs]
    pairs = (
        (theirs, Reference(theirs, weight_decay=0.1, growth_rate=1.5, decouple=True)),
        (ours, DAdaptAdam(ours, lr=1.0, weight_decay=0.1, growth_rate=1.5)),
    )
    for step in range(60):
        target = torch.randn(6, 5, generator=generator)
        for weights, optimizer in pairs:
            optimizer.zero_grad()
            # nothing to learn from at first: no step, and no division by zero
            ((weights[0] - target).square().mean() + weights[1].sin().sum()).mul(
                float(step > 0)
            ).backward()
            optimizer.step()
        d = [float(optimizer.param_groups[0]["d"]) for _, optimizer in pairs]
        assert d[0] == pytest.approx(d[1], rel=1e-5)
        for a, b in zip(theirs, ours, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert d[1] > 1e-4


def test_encoding_crops_to_the_bucket_and_names_what_cannot_be_read(base: Path) -> None:
    choices = [Bucket(16, 16), Bucket(24, 8)]
    wide = replace(EXAMPLES[0], image=picture(0, 40, 14), id="wide")
    data = encode(models(base), [wide, EXAMPLES[0]], choices, keep_tokens=False)
    assert data.ids == ("000", "wide")
    assert [tuple(latents.shape) for latents in data.latents] == [(4, 2, 2), (4, 1, 3)]
    assert data.captions.shape == (2, 32, 32)  # "" and "cat 0"
    assert data.caption_rows.tolist() == [1, 1]
    with pytest.raises(ValueError, match="'bad' cannot be read"):
        encode(models(base), [Example("bad", "", b"<html>")], choices, keep_tokens=False)
    with pytest.raises(ValueError, match="two examples have the id '000'"):
        encode(models(base), EXAMPLES[:1] * 2, choices, keep_tokens=False)


def test_a_transparent_picture_is_drawn_on_white(base: Path) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(file, "WEBP", lossless=True)
    white = io.BytesIO()
    Image.new("RGB", (16, 16), (255, 255, 255)).save(white, "PNG")
    examples = [Example("a", "", file.getvalue()), Example("b", "", white.getvalue())]
    data = encode(models(base), examples, [Bucket(16, 16)], keep_tokens=True)
    assert torch.equal(data.latents[0], data.latents[1])
    assert data.captions.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": "adma"}, "optimizer must be adamw or dadaptation"),
        ({"precision": "fp8"}, "precision must be"),
        ({"batch_size": 0}, "batch_size must be above 0"),
        ({"ema_decay": 1.0}, "ema_decay must be below 1"),
        ({"resolution": 20}, "not a multiple of bucket_step_px"),
    ],
)
def test_params_out_of_range_are_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(PARAMS, **change)  # type: ignore[arg-type]


@pytest.fixture
def project(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder as the stage finds it: shards, manifests, params."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for side, examples in (("train", EXAMPLES), ("validation", HELD_OUT)):
        rows = []
        with tarfile.open(f"{side}.tar", "w") as tar:
            for example in examples:
                header = tarfile.TarInfo(f"{example.id}.png")
                header.size = len(example.image)
                tar.addfile(header, io.BytesIO(example.image))
                where = {"shard": f"{side}.tar", "member": header.name}
                digest = sha256_bytes(example.image)
                rows.append(
                    {"id": example.id, "caption": example.caption, **where} | {"sha256": digest}
                )
        pq.write_table(pa.Table.from_pylist(rows), f"{side}.parquet")
    section = {"train": {"64": asdict(PARAMS)}}
    Path("params.yaml").write_text(yaml.safe_dump(section), encoding="utf-8")
    return tmp_path


def stage(base: Path, *changes: str) -> None:
    options = {
        "--base": base / "base.safetensors",
        "--config": base / "config",
        "--train": "train.parquet",
        "--validation": "validation.parquet",
        "--out": "models/64",
        "--report": "reports/64",
    }
    main(["64", *(str(part) for option in options.items() for part in option), *changes])


def test_the_stage_publishes_weights_with_their_ancestry_and_reports(
    base: Path, project: Path
) -> None:
    stage(base)
    out = project / "models" / "64"
    assert sorted(p.name for p in out.iterdir()) == [
        "epoch_002.safetensors",
        "epoch_003.safetensors",
    ]
    metadata = read_header(out / "epoch_002.safetensors").metadata
    lineage = read_lineage(metadata)
    assert metadata["epoch"] == "2"
    assert lineage.recipe is not None
    assert lineage.recipe["run"] == "64"
    assert lineage.inputs() == {"base": sha256_file(base / "base.safetensors")}
    assert str(project) not in json.dumps(metadata)
    load_models(out / "epoch_003.safetensors", base / "config")

    report = project / "reports" / "64"
    with (report / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[0]["train_loss"] == ""
    assert all(float(r["low"]) <= float(r["val_loss"]) <= float(r["high"]) for r in rows[1:])
    found = json.loads((report / "metrics.json").read_text())
    assert found["start"] == float(rows[0]["val_loss"])
    assert found["minimum"] == min(float(row["val_loss"]) for row in rows)
    assert found["epoch_of_minimum"] == 3
    assert found["change_percent"] < 0
    with Image.open(report / "loss.png") as graph:
        assert graph.width > 600


def test_runs_of_another_section_are_trained_alike(base: Path, project: Path) -> None:
    section = {"train_ingredient": {"64": asdict(replace(PARAMS, max_epochs=1))}}
    Path("params.yaml").write_text(yaml.safe_dump(section), encoding="utf-8")
    stage(base, "--section", "train_ingredient")
    assert [p.name for p in Path("models/64").iterdir()] == ["epoch_001.safetensors"]


def test_the_stage_goes_on_and_gives_the_same_bytes_again(
    base: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def outputs() -> dict[str, str]:
        files = (p for top in ("models", "reports") for p in (project / top).rglob("*.*"))
        return {str(p): sha256_file(p) for p in files}

    stage(base)
    first = outputs()
    for path in (project / "models" / "64").iterdir():
        path.unlink()  # as DVC does before a run
    stage(base)
    assert outputs() == first
    assert "going on in epoch 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("breaking", "words"),
    [
        ("manifest", "no such manifest"),
        ("picture", "is not the picture that the manifest means"),
        ("section", "missing section '64'"),
        ("other files", "will not replace it"),
    ],
)
def test_the_stage_says_what_is_wrong(base: Path, project: Path, breaking: str, words: str) -> None:
    match breaking:
        case "manifest":
            Path("train.parquet").unlink()
        case "picture":
            table = pq.read_table("train.parquet")
            column = [*table["sha256"].to_pylist()[1:], "0" * 64]
            pq.write_table(table.set_column(4, "sha256", pa.array(column)), "train.parquet")
        case "section":
            Path("params.yaml").write_text("train: {}\n", encoding="utf-8")
        case "other files":
            Path("models/64").mkdir(parents=True)
            Path("models/64/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match=words):
        stage(base)
