"""Training: it learns, it may be killed at any moment, and it says what is wrong."""

import csv
import json
import os
import random
import signal
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from subprocess import DEVNULL, PIPE
from threading import Event, Timer
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from stages.diffusion.header import read_header
from stages.diffusion.model import Base, Models, load_models
from stages.harness.files import sha256_bytes, sha256_file
from stages.harness.scratch import exclusive
from stages.lineage.ancestry import Parent, read_lineage, read_parent
from stages.train import main
from stages.training.draw import Drawn
from stages.training.learner import Learner, Step
from stages.training.loop import Trained, train
from stages.training.params import TrainParams
from stages.training.validation import validation_errors
from tests.tiny_training import (
    EXAMPLES,
    HELD_OUT,
    PARAMS,
    ROOT,
    base,
    command,
    hashes,
    one_thread,
    picture,
    pictures,
    start,
    start_from,
    v_prediction_config,
    wait_for,
)

__all__ = ["base", "one_thread"]  # fixtures are found by their names
pytestmark = pytest.mark.usefixtures("one_thread")


def test_training_lowers_the_loss_and_keeps_every_nth_and_the_best(
    base: Path, tmp_path: Path
) -> None:
    trained = start(base, tmp_path)
    history = trained.history
    assert history.best == 3
    assert history.change(3).high < 0
    assert sorted(trained.weights) == [2, 3]
    assert len(history) == 1 + len(history.train_losses) == 4
    kept = {path.name for path in (tmp_path / "weights").iterdir()}
    assert kept >= {"epoch_002.safetensors", "epoch_003.safetensors"}
    # what was measured is what was kept
    again = train(
        Base(trained.weights[3], base / "config"),
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
    twice = train(start_from(base), shuffled, HELD_OUT[::-1], PARAMS, tmp_path / "b")
    assert hashes(once) == hashes(twice)
    larger = start(base, tmp_path / "c", replace(PARAMS, batch_size=16, max_epochs=1))
    assert larger.history.errors[0] == pytest.approx(once.history.errors[0], rel=1e-4)


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_a_network_that_learns_nothing_is_not_held(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    held: list[Models] = []

    def noted(self: Learner, models: Models, *rest: Any) -> None:
        held.append(models)
        initialise(self, models, *rest)

    initialise = Learner.__init__
    monkeypatch.setattr(Learner, "__init__", noted)
    start(base, tmp_path, replace(PARAMS, max_epochs=1, text_encoder_learning_rate=rate))
    (models,) = held
    assert models.vae.device.type == "meta"  # has no storage
    assert models.text_encoder.device.type == ("cpu" if rate else "meta")


def test_accumulated_gradients_are_those_of_one_large_batch(base: Path, tmp_path: Path) -> None:
    """Of one bucket, 16 in a step: 4 x 4, or 1 x 16."""
    same_shape = [replace(e, image=picture(i)) for i, e in enumerate(pictures(16))]
    params = replace(PARAMS, max_epochs=1, ema_decay=0.0)
    losses = [
        train(
            start_from(base),
            same_shape,
            HELD_OUT,
            replace(params, batch_size=size, gradient_accumulation=times),
            tmp_path / str(size),
        ).history.means[1]
        for size, times in ((4, 4), (16, 1))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "dadaptation", "prodigy", "schedulefree"])
def test_a_run_killed_again_and_again_ends_with_the_weights_of_an_unbroken_one(
    base: Path, tmp_path: Path, optimizer: str
) -> None:
    rate = 1.0 if optimizer in ("dadaptation", "prodigy") else 1e-3
    average = 0.0 if optimizer == "schedulefree" else 0.5
    params = replace(
        PARAMS,
        optimizer=optimizer,
        learning_rate=rate,
        text_encoder_learning_rate=rate,
        ema_decay=average,
    )
    unbroken = start(base, tmp_path / "unbroken", params)
    scratch = tmp_path / "killed"
    for steps in (2, 4):  # of 9: within the second epoch, and the third
        words = command(base, scratch, params)
        with subprocess.Popen(words, cwd=ROOT, stdout=PIPE, stderr=DEVNULL) as process:
            wait_for(scratch / "checkpoints" / f"step_{steps:09}.safetensors", process)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    resumed: list[str] = []
    assert hashes(start(base, scratch, params, say=resumed.append)) == hashes(unbroken)
    assert any("going on in epoch" in line for line in resumed)


def test_twenty_kills_change_nothing_the_last_ones_after_the_stop_rule_fired(
    base: Path, tmp_path: Path
) -> None:
    """Each within another step, or in the writing of its checkpoint."""
    hasty = replace(
        PARAMS,
        optimizer="dadaptation",
        learning_rate=3e5,  # far too high: every epoch is worse than the base
        max_aspect=2.0,
        weight_decay=0.0,
        batch_size=1,
        max_epochs=9,
        stop_patience=3,
    )
    patient = replace(hasty, stop_patience=5)  # goes on where the rule stopped
    scratch, moments = tmp_path / "killed", random.Random(0)

    def finish(folder: Path, params: TrainParams) -> Trained:
        return train(start_from(base), pictures(40), HELD_OUT, params, folder, save_every_s=0)

    unbroken = finish(tmp_path / "unbroken", patient)
    assert len(unbroken.history) - 1 == 5  # of 20 steps each
    for _ in range(17):
        kill_a_child(lambda: finish(scratch, hasty), moments)
    assert len(finish(scratch, hasty).history) - 1 == 3
    for _ in range(3):
        kill_a_child(lambda: finish(scratch, patient), moments)
    assert hashes(finish(scratch, patient)) == hashes(unbroken)


def kill_a_child(work: Callable[[], object], moments: random.Random) -> None:
    """Work in a forked process and kill it within a step, or what follows one."""
    steps, moment_s = moments.choice([1, 2, 3, 4]), moments.uniform(0, 0.03)
    child = os.fork()
    if not child:
        done = 0

        def counted(*words: Any) -> Step:
            nonlocal done
            done += 1
            if done == steps:
                Timer(moment_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return take_step(*words)

        take_step = Learner.step
        Learner.step = counted  # type: ignore[method-assign, assignment]
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended before it could be killed"


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_polite_signal_saves_first(
    base: Path, tmp_path: Path, number: signal.Signals, end: type[BaseException]
) -> None:
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        if line.startswith("epoch 1:"):
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    unbroken = start(base, tmp_path / "unbroken")
    with pytest.raises(end) as raised:
        start(base, tmp_path / "stopped", say=interrupt)
    assert end is KeyboardInterrupt or raised.value.args == (143,)
    assert lines[-1] == f"stopped by {number.name}; start it again and it goes on"
    assert any((tmp_path / "stopped/checkpoints").iterdir())
    assert signal.getsignal(number) is before
    assert hashes(start(base, tmp_path / "stopped")) == hashes(unbroken)


def test_a_signal_in_the_middle_of_a_validation_doubles_no_loss(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = start(base, tmp_path / "unbroken")
    validations = 0

    def terminated(*words: Any, **more: Any) -> torch.Tensor:
        nonlocal validations
        validations += 1
        if validations == 2:  # behind the first epoch; the base's came before
            os.kill(os.getpid(), signal.SIGTERM)
        return validation_errors(*words, **more)

    with monkeypatch.context() as patch:
        patch.setattr("stages.training.loop.validation_errors", terminated)
        with pytest.raises(SystemExit, match="143"):
            start(base, tmp_path / "stopped")
    again = start(base, tmp_path / "stopped")
    assert again.history.train_losses == unbroken.history.train_losses
    assert hashes(again) == hashes(unbroken)


def test_the_checkpoint_before_a_damaged_one_finds_the_weights_it_names(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another machine's rounding makes the epoch before the best one."""
    params = replace(PARAMS, checkpoint_every_epochs=10)
    first = start(base, tmp_path, params, save_every_s=0)
    assert first.history.best == 3
    newest = max((tmp_path / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-10])

    def worse(*words: Any, **more: Any) -> torch.Tensor:
        return 1.02 * validation_errors(*words, **more)

    monkeypatch.setattr("stages.training.loop.validation_errors", worse)
    again = start(base, tmp_path, params)
    assert again.history.best == 2
    assert all(path.is_file() for path in again.weights.values())


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


def test_a_warm_up_longer_than_its_schedule_is_refused(base: Path, tmp_path: Path) -> None:
    params = replace(PARAMS, schedule="cosine", schedule_epochs=1, warmup_steps=50)
    with pytest.raises(ValueError, match="warmup_steps is 50, but the whole cosine schedule has"):
        start(base, tmp_path, params)


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
            train(start_from(base), examples, HELD_OUT, params, tmp_path)


def test_other_samples_and_another_end_go_on_and_anything_else_does_not(
    base: Path, tmp_path: Path
) -> None:
    samples = replace(PARAMS.samples, every_epochs=2, prompts=("cat", "cat 1"))
    first = start(base, tmp_path)
    lines: list[str] = []
    drawn = start(base, tmp_path, replace(PARAMS, max_epochs=4, samples=samples), say=lines.append)
    assert any("going on in epoch 4" in line for line in lines)
    assert any("no sample pictures with these prompts of epoch 2: " in line for line in lines)
    assert first.samples == {}
    assert sorted(drawn.samples) == [4]
    with Image.open(drawn.samples[4]) as row:
        assert row.size == (2 * PARAMS.resolution, PARAMS.resolution)
    with pytest.raises(ValueError, match="holds another run"):
        start(base, tmp_path, replace(PARAMS, warmup_steps=2))


def test_drawing_on_the_way_changes_no_weight(base: Path, tmp_path: Path) -> None:
    samples = replace(PARAMS.samples, every_epochs=1, prompts=("cat",))
    params = replace(PARAMS, text_encoder_learning_rate=1e-3)
    plain = start(base, tmp_path / "a", params)
    assert hashes(start(base, tmp_path / "b", replace(params, samples=samples))) == hashes(plain)


@pytest.mark.parametrize(
    "changes", [{"gradient_checkpointing": True}, {"precision": "bf16"}, {"precision": "fp16"}]
)
def test_what_saves_memory_leaves_the_loss_where_it_was(
    base: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    plain = start(base, tmp_path / "a").history
    saving = start(base, tmp_path / "b", replace(PARAMS, **changes)).history  # type: ignore[arg-type]
    assert saving.means[3] == pytest.approx(plain.means[3], rel=0.02)
    assert saving.means[3] < 0.99 * saving.means[0]


def test_a_learning_rate_that_fell_to_zero_moves_nothing_and_that_is_told_at_the_start(
    base: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    params = replace(PARAMS, schedule="cosine", schedule_epochs=1, weight_decay=0.0, ema_decay=0.0)
    means = start(base, tmp_path / "a", params, say=lines.append).history.means
    assert means[1] < means[0]
    assert means[1] == means[2] == means[3]
    (warned,) = (i for i, line in enumerate(lines) if "with a rate of 0" in line)
    assert "after schedule_epochs 1: the 2 epochs from there to max_epochs 3" in lines[warned]
    assert warned < next(i for i, line in enumerate(lines) if line.startswith("base:"))


@pytest.mark.parametrize(("schedule", "epochs"), [("constant", 1), ("linear", 3), ("cosine", 9)])
def test_a_schedule_as_long_as_its_run_is_not_warned_of(
    base: Path, tmp_path: Path, schedule: str, epochs: int
) -> None:
    lines: list[str] = []
    params = replace(PARAMS, schedule=schedule, schedule_epochs=epochs)
    start(base, tmp_path, params, say=lines.append)
    assert not any("with a rate of 0" in line for line in lines)


def test_v_prediction_trains_a_base_whose_config_says_so_and_no_other(
    base: Path, tmp_path: Path
) -> None:
    config = v_prediction_config(base, tmp_path)
    params = replace(
        PARAMS, prediction_type="v_prediction", zero_terminal_snr=True, ema_decay=0.0, max_epochs=6
    )
    weights = base / "base.safetensors"
    trained = train(Base(weights, config), EXAMPLES, EXAMPLES, params, tmp_path / "v")  # by heart
    assert trained.history.change(6).high < 0
    plain = replace(params, zero_terminal_snr=False, max_epochs=1)
    without = train(Base(weights, config), EXAMPLES, EXAMPLES, plain, tmp_path / "plain")
    assert without.history.means[0] != trained.history.means[0]  # other noise, the same base
    for other, said in ((base / "config", "epsilon"), (config, "v_prediction")):
        wrong = replace(PARAMS, prediction_type="epsilon" if other == config else "v_prediction")
        with pytest.raises(ValueError, match=f"says '{said}'"):
            train(Base(weights, other), EXAMPLES, HELD_OUT, wrong, tmp_path / said)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_whose_loss_is_not_finite_is_left_out_and_counted(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """One example's noise breaks the loss in every epoch; its steps are left out."""
    errors = Learner.errors

    def broken(self: Learner, drawn: Drawn) -> torch.Tensor:
        scale = torch.tensor([float("nan") if id_ == "003" else 1.0 for id_ in drawn.ids])
        return errors(self, drawn) * scale

    monkeypatch.setattr(Learner, "errors", broken)
    lines: list[str] = []
    params = replace(PARAMS, max_skipped_share=0.5, precision=precision)
    trained = start(base, tmp_path / "a", params, say=lines.append)
    left_out = [line for line in lines if "not finite; left out" in line]
    assert len(left_out) == 3
    assert all("003" in line for line in left_out)
    assert trained.history.means[3] < trained.history.means[0]
    with pytest.raises(ValueError, match=r"more than max_skipped_share 0\.0 of an epoch"):
        start(base, tmp_path / "b", replace(params, max_skipped_share=0.0))


def test_float16_goes_on_where_a_whole_epoch_only_lowers_the_scale(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient beyond float16's range halves the scale, and moves no weight."""
    steep = partial(torch.amp.GradScaler, init_scale=2.0**32)
    monkeypatch.setattr(torch.amp, "GradScaler", steep)
    params = replace(PARAMS, precision="fp16", max_epochs=20, ema_decay=0.0, max_skipped_share=0.0)
    one = EXAMPLES[:1]
    history = train(start_from(base), one, HELD_OUT, params, tmp_path).history
    still = [epoch for epoch in range(1, 21) if history.means[epoch] == history.means[0]]
    assert still[:2] == [1, 2]  # beyond float16's range
    assert len(still) < 20  # and within it
    assert np.isfinite(history.train_losses).all()


def test_out_of_memory_says_which_batch_would_fit(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = Learner.errors

    def small(self: Learner, drawn: Drawn) -> torch.Tensor:
        if len(drawn.ids) > 2 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("no room")
        return errors(self, drawn)

    monkeypatch.setattr(Learner, "errors", small)
    with pytest.raises(ValueError, match=r"batch_size 2 would fit; with gradient_accumulation 4"):
        start(base, tmp_path / "a", replace(PARAMS, batch_size=4))


def test_out_of_memory_before_the_first_step_blames_no_batch(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*words: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("stages.training.preparation.make_parts", no_room)
    with pytest.raises(ValueError, match=r"the UNet moved there: no batch size helps.*ema_decay 0"):
        start(base, tmp_path)


def test_buckets_smaller_than_a_batch_train_and_are_told(base: Path, tmp_path: Path) -> None:
    examples = [*EXAMPLES[:2], replace(EXAMPLES[2], image=picture(2, 16, 32))]
    lines: list[str] = []
    params = replace(PARAMS, batch_size=8, max_epochs=1, max_aspect=3.0)
    trained = train(start_from(base), examples, HELD_OUT, params, tmp_path, say=lines.append)
    assert any("3 of 3 buckets hold fewer than batch_size 8" in line for line in lines)
    assert len(trained.history) == 2


def test_a_scratch_folder_that_another_process_holds_is_named(base: Path, tmp_path: Path) -> None:
    with (
        exclusive(tmp_path),
        pytest.raises(BlockingIOError, match=f"process {os.getpid()} .* is still at work here"),
    ):
        start(base, tmp_path)


def test_8_bit_adamw_says_how_to_get_it(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pip install bitsandbytes=="):
        start(base, tmp_path, replace(PARAMS, optimizer="adamw8bit"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": "adma"}, "optimizer must be adamw or adamw8bit or dadaptation"),
        ({"schedule": "cosinus"}, "schedule must be constant or cosine or linear"),
        ({"schedule_epochs": 0}, "schedule_epochs must be above 0"),
        ({"prediction_type": "sample"}, "prediction_type must be epsilon or v_prediction"),
        ({"zero_terminal_snr": True}, "zero_terminal_snr needs prediction_type v_prediction"),
        ({"optimizer": "schedulefree"}, "set schedule to constant and ema_decay to 0"),
        ({"precision": "fp8"}, "precision must be"),
        ({"batch_size": 0}, "batch_size must be above 0"),
        ({"ema_decay": 1.0}, "ema_decay must be below 1"),
        ({"activation_memory": 0.0}, "activation_memory must be above 0 and at most 1"),
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
                tar.addfile(header, BytesIO(example.image))
                where = {"shard": f"{side}.tar", "member": header.name}
                digest = sha256_bytes(example.image)
                rows.append(
                    {"id": example.id, "caption": example.caption, **where} | {"sha256": digest}
                )
        pq.write_table(pa.Table.from_pylist(rows), f"{side}.parquet")
    write_params("train", PARAMS)
    return tmp_path


def write_params(section: str, params: TrainParams) -> None:
    text = json.dumps({section: {"64": asdict(params)}})  # JSON is YAML, and knows no tuples
    Path("params.yaml").write_text(text, encoding="utf-8")


def stage_words(base: Path, *changes: str) -> list[str]:
    options = {
        "--base": base / "base.safetensors",
        "--config": base / "config",
        "--train": "train.parquet",
        "--validation": "validation.parquet",
        "--out": "models/64",
        "--report": "reports/64",
    }
    return ["64", *(str(part) for option in options.items() for part in option), *changes]


def stage(base: Path, *changes: str) -> None:
    main(stage_words(base, *changes))


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
    assert lineage.recipe["pictures"] == {"train": 15, "validation": 6}
    assert lineage.predictions() == {"epsilon"}
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


def test_the_base_is_hashed_while_the_networks_code_is_imported(
    base: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = Event()

    def hashed(path: Path, metadata: Mapping[str, str]) -> Parent:
        assert imported.wait(20), "the imports waited for the hash"
        return read_parent(path, metadata)

    monkeypatch.setattr("stages.train.read_parent", hashed)
    monkeypatch.setattr("stages.diffusion.model.import_networks", imported.set)
    stage(base)
    assert (project / "reports/64/metrics.json").is_file()


def test_runs_of_another_section_are_trained_alike(base: Path, project: Path) -> None:
    write_params("train_ingredient", replace(PARAMS, max_epochs=1))
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
