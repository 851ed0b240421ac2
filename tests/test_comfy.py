"""ComfyUI servers as an engine: spread, survived, and told apart when they refuse."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages import grid_score
from stages.choice.scores import read_scores, score_table
from stages.comfy.server import Server
from stages.comfy.workflow import SAMPLERS, Workflow, read_workflow
from stages.drawing.cell import SAMPLER_NAMES, Cell
from stages.drawing.grid_params import GridParams, PromptSet, planned_cells
from stages.drawing.manifest import read_manifest
from stages.harness.files import sha256_bytes
from tests.comfy_server import FakeComfy, Habits
from tests.imports import ROOT
from tests.tiny_clip import make_tiny_clip
from tests.tiny_grid import PARAMS, SCORE_PARAMS, draw_grid

WORKFLOW = ROOT / "profiles" / "comfyui.json"
MODELS = ["one", "two"]
FILES = {name: f"{sha256_bytes(f'weights of {name}'.encode())[:16]}.safetensors" for name in MODELS}
CHECKPOINTS = [f"sd15/{FILES['one']}", FILES["two"]]
CELLS = 8  # of each model
Start = Callable[..., FakeComfy]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr("stages.comfy.spread.PAUSES_S", (0.01, 0.02))


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers, which have the checkpoints of MODELS unless told otherwise."""
    started: list[FakeComfy] = []

    def start_one(**habits: Any) -> FakeComfy:
        names = habits.pop("checkpoints", CHECKPOINTS)
        started.append(FakeComfy(Habits(names, **habits)).start())
        return started[-1]

    yield start_one
    for server in started:
        server.stop()


def params_for(*servers: FakeComfy | str, timeout_s: float = 20.0) -> GridParams:
    addresses = [s if isinstance(s, str) else s.address for s in servers]
    comfyui = dataclasses.replace(
        PARAMS.comfyui, servers=addresses, workflow=str(WORKFLOW), timeout_s=timeout_s
    )
    return dataclasses.replace(PARAMS, engine="comfyui", comfyui=comfyui)


def run(tmp_path: Path, params: GridParams) -> dict[str, Any]:
    tmp_path.mkdir(exist_ok=True)
    weights = {}
    for name in MODELS:
        weights[name] = tmp_path / f"{name}.bin"
        weights[name].write_text(f"weights of {name}")
    config = tmp_path / "config"
    config.mkdir(exist_ok=True)
    (config / "model_index.json").write_text("{}")
    return draw_grid(weights, config, tmp_path / "out", params)


def test_every_cell_is_what_its_own_graph_drew(tmp_path: Path, start: Start) -> None:
    server = start()
    counts = run(tmp_path, params_for(server))
    assert (counts["drawn"], counts["failed"], server.drawn) == (2 * CELLS, 0, 2 * CELLS)
    for entry in read_manifest(tmp_path / "out").entries:
        with Image.open(tmp_path / "out" / str(entry.file)) as picture:
            assert picture.size == (entry.width, entry.height)
            assert picture.getpixel((0, 0)) == (entry.seed, PARAMS.steps, 7)
            assert entry.prompt in str(picture.info["parameters"])
    sent = {graph["checkpoint"]["inputs"]["ckpt_name"] for graph in server.graphs}
    assert sent == set(CHECKPOINTS)
    names = [graph["picture"]["inputs"]["filename_prefix"] for graph in server.graphs]
    assert len(set(names)) == len(names), "an equal graph would be answered with an old file"


def test_what_was_drawn_is_not_asked_for_again(tmp_path: Path, start: Start) -> None:
    server = start()
    run(tmp_path, params_for(server))
    counts = run(tmp_path, params_for("http://127.0.0.1:9"))
    assert (counts["drawn"], counts["reused"]) == (0, 2 * CELLS)


def test_another_version_of_the_server_draws_other_cells(tmp_path: Path, start: Start) -> None:
    run(tmp_path, params_for(start()))
    settings = read_manifest(tmp_path / "out").settings
    assert "dtype" not in settings, "no server is told it"
    assert settings["drawing"].startswith("ComfyUI 0.3.64, torch 2.13.0+cpu, cpu, workflow ")
    counts = run(tmp_path, params_for(start(version="0.9.9")))
    assert (counts["drawn"], counts["reused"]) == (2 * CELLS, 0)


def test_servers_that_would_draw_differently_do_not_share_a_grid(
    tmp_path: Path, start: Start
) -> None:
    servers = [start(), start(version="0.9.9")]
    with pytest.raises(ValueError, match=r"draws with ComfyUI 0\.3\.64.*with ComfyUI 0\.9\.9"):
        run(tmp_path, params_for(*servers))
    assert not any(server.graphs for server in servers)


def test_the_work_is_spread_over_servers(tmp_path: Path, start: Start) -> None:
    servers = [start(), start()]
    run(tmp_path, params_for(*servers))
    assert sum(server.drawn for server in servers) == 2 * CELLS
    assert min(server.drawn for server in servers) >= CELLS / 2


def test_a_server_lost_in_the_middle_leaves_its_cells_to_the_others(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    good, dying = start(), start(dies_after=3)
    counts = run(tmp_path, params_for(good, dying))
    assert (counts["drawn"], counts["failed"]) == (2 * CELLS, 0)
    assert dying.drawn == 3
    assert f"done without a server: {dying.address}: lost" in capsys.readouterr().out


def test_a_server_that_is_busy_for_a_moment_is_asked_again(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start(busy_for=2)
    counts = run(tmp_path, params_for(server))
    assert (counts["drawn"], counts["failed"]) == (2 * CELLS, 0)
    said = capsys.readouterr().out
    assert f"{server.address}: lost (ClientResponseError 503); trying again in 0.01 s" in said


def test_a_server_that_stays_busy_counts_as_lost(tmp_path: Path, start: Start) -> None:
    with pytest.raises(ConnectionError, match=r"not drawn: 16 cells.*ClientResponseError 503"):
        run(tmp_path, params_for(start(busy_for=3)))


def test_a_graph_that_the_server_forgot_is_sent_again(
    tmp_path: Path,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As where somebody clears its queue, or it starts anew at once."""
    monkeypatch.setattr("stages.comfy.server.ASK_AGAIN_S", 0.1)
    server = start(forgets=2)
    assert run(tmp_path, params_for(server, timeout_s=10))["drawn"] == 2 * CELLS
    assert len(server.graphs) == 2 * CELLS + 2
    assert "lost (GraphForgottenError); trying again in 0.01 s" in capsys.readouterr().out


def test_a_server_that_hangs_counts_as_lost(tmp_path: Path, start: Start) -> None:
    good, hanging = start(), start(hangs=True)
    counts = run(tmp_path, params_for(good, hanging, timeout_s=1.0))
    assert (counts["drawn"], hanging.drawn) == (2 * CELLS, 0)


def test_when_all_are_lost_what_was_drawn_is_kept(tmp_path: Path, start: Start) -> None:
    with pytest.raises(ConnectionError, match=r"not drawn: 11 cells, .*start again"):
        run(tmp_path, params_for(start(dies_after=6)))
    counts = run(tmp_path, params_for(start()))
    assert counts["drawn"] == 11


@pytest.mark.parametrize("habit", ["silent", "drops_socket", "old", "combo", "chatty"])
def test_messages_that_never_come_or_of_others_and_older_servers_are_no_obstacle(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, habit: str
) -> None:
    monkeypatch.setattr("stages.comfy.server.ASK_AGAIN_S", 0.1)
    counts = run(tmp_path, params_for(start(**{habit: True})))
    assert counts["drawn"] == 2 * CELLS


def test_a_cell_that_the_server_cannot_draw_is_marked_with_its_words(
    tmp_path: Path, start: Start
) -> None:
    counts = run(tmp_path, params_for(start(fails_on="apple")))
    assert counts["failed_by_model"] == {"one": CELLS // 2, "two": CELLS // 2}
    failed = [e for e in read_manifest(tmp_path / "out").entries if e.failed]
    assert {e.prompt for e in failed} == {"red apple"}
    assert "RuntimeError: ERROR: Could not detect model type of" in str(failed[0].failed)
    assert str(failed[0].failed).endswith("(node CheckpointLoaderSimple)")


def test_an_absent_server_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9: no ComfyUI server answers there"):
        run(tmp_path, params_for("http://127.0.0.1:9"))
    with pytest.raises(ValueError, match="write http://HOST:PORT"):
        run(tmp_path, params_for("127.0.0.1:8188"))


def test_a_server_without_the_checkpoint_is_refused_before_the_work(
    tmp_path: Path, start: Start
) -> None:
    server = start(checkpoints=[FILES["one"]])
    with pytest.raises(ValueError, match=f"no server has the checkpoint of two: .*{FILES['two']}"):
        run(tmp_path, params_for(server))
    assert not server.graphs
    other = start(checkpoints=[f"models\\{FILES['two']}"])
    assert run(tmp_path, params_for(server, other))["drawn"] == 2 * CELLS
    assert (server.drawn, other.drawn) == (CELLS, CELLS)


def test_a_checkpoint_of_the_model_s_name_may_be_another_run_s_and_is_not_taken(
    tmp_path: Path, start: Start
) -> None:
    server = start(checkpoints=["one.safetensors", "two.safetensors"])
    with pytest.raises(ValueError, match=f"one: put its file, .*as {FILES['one']}"):
        run(tmp_path, params_for(server))
    assert not server.graphs


def test_a_graph_that_the_server_refuses_is_told_with_its_reason(
    tmp_path: Path, start: Start
) -> None:
    reason = r"every cell failed.*refused the graph: node checkpoint.*'gone\.safetensors' not in"
    with pytest.raises(ValueError, match=reason):
        run(tmp_path, params_for(start(refuses="refused")))
    with pytest.raises(ValueError, match="Cannot execute because node Sampler9000 does not"):
        run(tmp_path, params_for(start(refuses="unknown_node")))


def test_a_cell_that_somebody_interrupts_is_marked_and_the_rest_is_drawn(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.comfy.server.ASK_AGAIN_S", 0.1)
    habits: dict[str, Any]
    for number, habits in enumerate(({}, {"silent": True})):
        monkeypatch.setenv("DVC_ROOT", str(tmp_path / str(number)))
        counts = run(tmp_path / str(number), params_for(start(interrupted_on="apple", **habits)))
        assert counts["failed_by_model"] == {"one": CELLS // 2, "two": CELLS // 2}
        entries = read_manifest(tmp_path / str(number) / "out").entries
        said = {entry.failed for entry in entries if entry.failed}
        assert said == {"PictureError: it was interrupted (node KSampler)"}


@pytest.mark.parametrize(
    ("habit", "words"), [("loses", "has no file"), ("cuts", "what came is no whole picture")]
)
def test_a_picture_that_does_not_come_whole_fails_its_cell_alone(
    tmp_path: Path, start: Start, habit: str, words: str
) -> None:
    with pytest.raises(ValueError, match=f"every cell failed; the first: PictureError: .*{words}"):
        run(tmp_path, params_for(start(**{habit: True})))


def test_a_black_picture_is_marked_and_its_model_scored_as_the_worst(
    tmp_path: Path, start: Start
) -> None:
    counts = run(tmp_path, params_for(start(black_for=FILES["two"])))
    assert counts["failed_by_model"] == {"two": CELLS}
    failed = {e.model: e.failed for e in read_manifest(tmp_path / "out").entries}
    assert failed["one"] is None
    assert "FloatingPointError: a picture that is black throughout" in str(failed["two"])
    outs = grid_score.ScoreOuts(tmp_path / "s.csv", tmp_path / "s.json")
    grid_score.run(tmp_path / "out", make_tiny_clip(tmp_path / "clip"), outs, SCORE_PARAMS)
    table = score_table(read_scores(tmp_path / "s.csv"), MODELS, "s.csv")
    assert table.failed == {"two": CELLS}
    assert (table.means[1] < table.means[0]).all()


def test_a_picture_of_another_size_is_not_taken(tmp_path: Path, start: Start) -> None:
    with pytest.raises(ValueError, match="40 x 40 px came, 32 x 32 was asked for"):
        run(tmp_path, params_for(start(wrong_size=True)))


def a_cell(**changes: Any) -> Cell:
    return dataclasses.replace(planned_cells(PARAMS, "f" * 64, "c", "1")[0], **changes)


def test_the_shipped_workflow_says_all_that_a_cell_says() -> None:
    workflow = read_workflow(WORKFLOW)
    cell = a_cell(prompt='a "cat" {{seed}}', negative_prompt="dog", clip_skip=2, guidance=6.5)
    graph = workflow.filled(cell, "x.safetensors", "file")
    assert graph["positive"]["inputs"]["text"] == 'a "cat" {{seed}}'
    assert graph["negative"]["inputs"]["text"] == "dog"
    assert graph["clip"]["inputs"]["stop_at_clip_layer"] == -2
    assert graph["sampled"]["inputs"]["cfg"] == 6.5
    assert graph["sampled"]["inputs"]["seed"] == cell.seed
    assert graph["latents"]["inputs"] == {"width": 32, "height": 32, "batch_size": 1}
    assert SAMPLERS.keys() == SAMPLER_NAMES.keys()


def test_another_workflow_makes_other_cells() -> None:
    nodes = read_workflow(WORKFLOW).nodes
    changed = json.loads(json.dumps(nodes).replace('"denoise": 1.0', '"denoise": 0.9'))
    assert Workflow(nodes).version == read_workflow(WORKFLOW).version != Workflow(changed).version


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"nodes": []}', r"not a workflow in API format"),
        ('{"1": {"class_type": "x", "inputs": {"a": "{{sead}}"}}}', "no such word 'sead'"),
        (
            '{"1": {"class_type": "x", "inputs": {"a": "{{seed}}"}}}',
            "{{checkpoint}} stands nowhere",
        ),
    ],
)
def test_a_workflow_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "w.json"
    with pytest.raises(FileNotFoundError, match="no such workflow"):
        read_workflow(path)
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_workflow(path)


@pytest.mark.parametrize(
    ("word", "axis", "values", "why"),
    [
        ("sampler", "sampler", ["ddim"], r"grid\.axes\.sampler names several"),
        ("steps", "steps", [3], r"grid\.axes\.steps names several"),
        ("clip_layer", "clip_skip", [2], r"grid\.axes\.clip_skip names several"),
        ("negative_prompt", None, None, "the prompts have different negative ones"),
    ],
)
def test_a_workflow_that_would_draw_alike_what_is_to_differ_is_refused(
    tmp_path: Path, start: Start, word: str, axis: str | None, values: Any, why: str
) -> None:
    params, path = params_for(server := start()), tmp_path / "w.json"
    path.write_text(WORKFLOW.read_text("utf-8").replace(f'"{{{{{word}}}}}"', "1"))
    params = dataclasses.replace(
        params, comfyui=dataclasses.replace(params.comfyui, workflow=str(path))
    )
    if axis:
        axes = dataclasses.replace(params.axes, **{axis: values})
        varied = dataclasses.replace(params, axes=axes)
    else:
        avoids = PromptSet(category="a", negative_prompt="blurry", prompts=["dog"])
        varied = dataclasses.replace(params, prompts=["cat", avoids])
    with pytest.raises(ValueError, match=rf"w\.json: \{{\{{{word}\}}\}} stands nowhere.*{why}"):
        run(tmp_path, varied)
    assert not server.graphs
    assert run(tmp_path, params)["drawn"] == 2 * CELLS


def test_a_server_s_address_may_end_in_a_slash() -> None:
    assert Server("http://127.0.0.1:8188/", 1.0).address == "http://127.0.0.1:8188"
