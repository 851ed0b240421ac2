"""The polling booth: blind, kept at once, closed to everybody but its own page."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from stages.choice.booth import MAX_BODY_BYTES, Booth, serve
from stages.choice.pairs import is_swapped, question_pairs
from stages.choice.votes import read_votes
from stages.drawing.manifest import Entry, Manifest, entry_name, read_manifest
from stages.harness.files import sha256_json
from stages.images.text_chunk import without_text
from stages.vote import open_booth
from tests.browser import headless, listen
from tests.tiny_sd import write_json

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MODELS = {"row1": "1" * 64, "row2": "2" * 64, "row3": "3" * 64}
COLOURS = {"row1": (255, 0, 0), "row2": (0, 255, 0), "row3": (0, 0, 255)}
PROMPTS = ["red apple", "<b>bold</b> claim & more"]
DOUBLE_CLICK_MS = 600  # later, a second press at the same place is a press of its own
PATIENCE_MS = 15_000
Answer = tuple[int, bytes]


def make_grid(folder: Path) -> Path:
    """Publish a grid in which each model draws its own colour, and says so in the file's text."""
    from PIL.PngImagePlugin import PngInfo

    entries = []
    for model in MODELS:
        places = [(prompt, seed) for prompt in PROMPTS for seed in (1, 2)]
        for number, (prompt, seed) in enumerate(places, start=1):
            file = entry_name(model, number)
            (folder / model).mkdir(parents=True, exist_ok=True)
            text = PngInfo()
            text.add_text("parameters", f"Model hash: {MODELS[model][:10]}")
            Image.new("RGB", (64, 64), COLOURS[model]).save(folder / file, pnginfo=text)
            address = sha256_json([model, prompt, seed])
            failed = "NaN" if (model, number) == ("row3", 4) else None
            entry = Entry(model, prompt, seed, 64, 64, address, None if failed else file, failed)
            entries.append(entry)
    models = [{"name": name, "weights": sha256} for name, sha256 in MODELS.items()]
    cells = [{name: getattr(e, name) for name in Entry.__slots__} for e in entries]
    write_json(
        folder / "cells.json",
        {"group": "final", "models": models, "settings": {}, "cells": cells},
    )
    return folder


class Served:
    """A booth that is open."""

    def __init__(self, booth: Booth, cells: Path) -> None:
        self.booth, self.cells = booth, cells
        self.server = serve(booth, cells, port=0)
        self.port = self.server.server_address[1]
        self.host = f"127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Host": self.host, **named})
        response = connection.getresponse()
        said = response.status, response.read()
        connection.close()
        return said

    def post(self, path: str, body: object) -> dict[str, Any]:
        status, content = self.ask("POST", path, body, Origin=f"http://{self.host}")
        assert status == 200, content
        state: dict[str, Any] = json.loads(content)
        return state

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.booth.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    cells = make_grid(tmp_path / "cells")
    open_one = Served(open_booth(cells, "anna", tmp_path / "votes"), cells)
    yield open_one
    open_one.close()


def test_every_two_models_are_compared_wherever_both_drew_and_equally_early(
    tmp_path: Path,
) -> None:
    pairs = question_pairs(read_manifest(make_grid(tmp_path)))
    by_models = Counter(frozenset((pair.a.model, pair.b.model)) for pair in pairs)
    assert by_models == {
        frozenset(("row1", "row2")): 4,
        frozenset(("row1", "row3")): 3,  # one of row3's cells failed
        frozenset(("row2", "row3")): 3,
    }
    for pair in pairs:
        assert pair.a.place == pair.b.place
    for start in (0, 3, 6):
        asked = {frozenset((p.a.model, p.b.model)) for p in pairs[start : start + 3]}
        assert asked == {frozenset(two) for two in combinations(MODELS, 2)}


def test_models_of_the_same_weights_are_asked_about_once(tmp_path: Path) -> None:
    models = {"a": "1", "twin": "1", "b": "2"}
    entries = [
        Entry(name, f"prompt {n}", 1, 64, 64, sha256_json([weights, n]), f"{name}.png", None)
        for name, weights in models.items()
        for n in range(4)
    ]
    pairs = question_pairs(Manifest("g", models, {}, entries))
    assert [(pair.a.model, pair.b.model) for pair in pairs] == [("a", "b")] * 4
    booth = Booth("g", "anna", tmp_path, pairs, models)
    while question := booth.state()["question"]:
        booth.vote(question["id"], "tie")
    assert booth.state()["done"] == booth.state()["total"] == 4
    booth.close()


def test_votes_on_what_search_and_replace_made_of_a_prompt_are_votes_on_that_prompt(
    tmp_path: Path,
) -> None:
    models = {"a": "1", "b": "2"}
    entries = [
        Entry(
            name, text, 1, 64, 64, sha256_json([name, text]), "f.png", None,
            written="red cat", replaced=replaced,
        )
        for name in models
        for text, replaced in (("red cat", ""), ("blue cat", "red → blue"))
    ]  # fmt: skip
    booth = Booth("g", "anna", tmp_path, question_pairs(Manifest("g", models, {}, entries)), models)
    asked = []
    while question := booth.state()["question"]:
        asked.append(question["prompt"])
        booth.vote(question["id"], "left")
    booth.close()
    assert sorted(asked) == ["blue cat", "red cat"]
    votes = read_votes(tmp_path, "g", models).votes
    assert [vote.prompt for vote in votes] == ["red cat"] * 2
    assert len({vote.question for vote in votes}) == 2


def test_sides_are_by_chance_and_differ_between_voters(tmp_path: Path) -> None:
    entries = [
        Entry(model, f"prompt {n}", 1, 64, 64, sha256_json([model, n]), "f.png", None)
        for model in ("a", "b")
        for n in range(1000)
    ]
    pairs = question_pairs(Manifest("g", {"a": "1", "b": "2"}, {}, entries))
    for voter in ("anna", "ben"):
        swapped = sum(is_swapped(pair, voter) for pair in pairs)
        assert 450 < swapped < 550
    same = sum(is_swapped(pair, "anna") == is_swapped(pair, "ben") for pair in pairs)
    assert 450 < same < 550


def test_answers_become_lines_and_undo_adds_one_too(served: Served, tmp_path: Path) -> None:
    state = json.loads(served.ask("GET", "/state")[1])
    assert (state["done"], state["total"]) == (0, 10)
    for number, answer in enumerate(("left", "right", "tie", "both_bad"), start=1):
        state = served.post("/vote", {"question": state["question"]["id"], "answer": answer})
        assert state["done"] == number
    before = (tmp_path / "votes" / "anna.jsonl").read_bytes()
    state = served.post("/undo", {"vote": state["last"]})
    assert state["done"] == 3
    after = (tmp_path / "votes" / "anna.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(after.splitlines()) == 5
    ballot = read_votes(tmp_path / "votes", "final", MODELS)
    assert not ballot.problems
    assert len(ballot.votes) == 3
    for line, vote in zip(after.splitlines(), ballot.votes, strict=False):
        said = json.loads(line)
        left, right = said["left"], ({said["a"], said["b"]} - {said["left"]}).pop()
        shown = {"left": left, "right": right}
        asked = ["left", "right", None][ballot.votes.index(vote)]
        assert vote.winner == (shown[asked] if asked else None)


def test_the_answer_names_the_model_whose_picture_stood_at_that_side(served: Served) -> None:
    import io

    seen = []
    for side in ("left", "right", "left", "right"):
        question = json.loads(served.ask("GET", "/state")[1])["question"]["id"]
        status, content = served.ask("GET", f"/picture/{question}/{side}")
        assert status == 200
        with Image.open(io.BytesIO(content)) as picture:
            colour = picture.getpixel((0, 0))
            assert not picture.info, "the file would tell which model drew it"
        seen.append(next(name for name, value in COLOURS.items() if value == colour))
        served.post("/vote", {"question": question, "answer": side})
    lines = [json.loads(line) for line in served.booth.path.read_bytes().splitlines()]
    assert [line[line["answer"]] for line in lines] == seen
    drawn = {e.address: e for e in read_manifest(served.cells).entries}
    for line in lines:
        for side in "ab":
            entry = drawn[line[f"{side}_cell"]]
            assert entry.model == line[side]
            assert (entry.prompt, entry.negative_prompt) == (
                line["prompt"],
                line["negative_prompt"],
            )


def test_ten_thousand_brackets_are_no_answer_and_end_nothing(
    served: Served, tmp_path: Path
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    headers = {"Host": served.host, "Origin": f"http://{served.host}"}
    connection.request("POST", "/vote", "[" * MAX_BODY_BYTES, headers)
    assert connection.getresponse().status == 400
    connection.close()
    served.post("/vote", {"question": served.booth.state()["question"]["id"], "answer": "tie"})
    with served.booth.path.open("ab") as file:
        file.write(b"[" * 100_000 + b"\n")
    ballot = read_votes(tmp_path / "votes", "final", MODELS)
    assert len(ballot.votes) == 1
    assert ballot.problems == [f"{served.booth.path}, line 2: not JSON; was the line cut short?"]


def test_nothing_that_the_page_is_told_names_a_model(served: Served) -> None:
    told = [served.ask("GET", path)[1] for path in ("/", "/state")]
    assert not any(name.encode() in content for name in MODELS for content in told)


def test_an_answer_about_the_same_pictures_in_another_grid_answers_nothing_here(
    served: Served, tmp_path: Path
) -> None:
    """A row's winner has the pictures that it had among the cocktails, under another name."""
    renamed = json.loads((served.cells / "cells.json").read_text("utf-8"))
    renamed["group"] = "cocktails"
    write_json(tmp_path / "cocktails/cells.json", renamed)
    votes = tmp_path / "votes"
    first = open_booth(tmp_path / "cocktails", "ben", votes)
    asked = first.state()["question"]["id"]
    first.vote(asked, "tie")
    first.close()
    second = open_booth(served.cells, "ben", votes)
    state = second.state()
    assert (state["done"], state["last"], state["question"]["id"]) == (0, None, asked)
    second.vote(asked, "tie")
    second.close()
    assert len(read_votes(votes, "cocktails", MODELS).votes) == 1
    assert len(read_votes(votes, "final", MODELS).votes) == 1


@pytest.mark.parametrize("is_there", [True, False])
def test_an_answer_is_refused_where_git_put_another_file_in_the_place_of_the_voters(
    served: Served, is_there: bool
) -> None:
    asked = served.booth.state()["question"]["id"]
    served.post("/vote", {"question": asked, "answer": "tie"})
    served.booth.path.unlink()
    if is_there:
        served.booth.path.write_text("")
    body = {"question": served.booth.state()["question"]["id"], "answer": "tie"}
    status, said = served.ask("POST", "/vote", body, Origin=f"http://{served.host}")
    assert status == 500
    assert b"anna.jsonl was replaced or taken away" in said
    assert b"not kept" in said
    assert served.booth.state()["done"] == 1
    assert served.booth.path.exists() == is_there


def test_who_comes_by_another_port_is_told_the_right_one(served: Served) -> None:
    status, said = served.ask("GET", "/", Host="localhost:9000")  # as by ssh -L 9000:127.0.0.1:8765
    assert status == 421
    assert f"127.0.0.1:{served.port} or localhost:{served.port}".encode() in said


@pytest.mark.parametrize("port", ["taken", 99999])
def test_a_port_that_cannot_be_had_is_named(served: Served, port: object) -> None:
    number = served.port if port == "taken" else 99999
    with pytest.raises(OSError, match=f"port {number} of .*--port; 0 takes any"):
        serve(served.booth, served.cells, number)


def test_a_voter_goes_on_where_the_last_booth_was_closed(served: Served, tmp_path: Path) -> None:
    first = served.booth.state()["question"]["id"]
    served.post("/vote", {"question": first, "answer": "tie"})
    with pytest.raises(BlockingIOError, match="anna is voting elsewhere"):
        open_booth(tmp_path / "cells", "anna", tmp_path / "votes")
    other = open_booth(tmp_path / "cells", "ben", tmp_path / "votes")
    assert other.state()["done"] == 0
    other.close()
    assert not (tmp_path / "votes" / "ben.jsonl").exists(), "an empty file says nothing"
    served.booth.close()
    with served.booth.path.open("ab") as file:
        file.write(b'{"cut sho')
    again = open_booth(tmp_path / "cells", "anna", tmp_path / "votes")
    assert again.state()["done"] == 1
    assert "was the line cut short?" in again.problems[0]
    second = again.state()["question"]["id"]
    assert second != first
    again.vote(second, "left")
    again.close()
    assert len(read_votes(tmp_path / "votes", "final", MODELS).votes) == 2
    served.booth = open_booth(tmp_path / "cells", "carol", tmp_path / "votes")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),  # a form of another page in an old browser
        ({"Origin": "HOST", "Host": "evil.example"}, 421),  # a name that leads to this address
        ({"Origin": "HOST", "Host": "127.0.0.1:1"}, 421),
    ],
)
def test_only_the_own_page_may_answer(served: Served, headers: dict[str, str], status: int) -> None:
    sent = {k: v.replace("HOST", f"http://{served.host}") for k, v in headers.items()}
    question = served.booth.state()["question"]["id"]
    body = {"question": question, "answer": "tie"}
    assert served.ask("POST", "/vote", body, **sent)[0] == status
    assert served.booth.state()["done"] == 0
    if "Host" in headers:
        assert served.ask("GET", "/state", Host=headers["Host"])[0] == 421


@pytest.mark.parametrize(
    "body", [{}, [], {"question": "x", "answer": "tie"}, {"question": "FIRST", "answer": "maybe"}]
)
def test_an_answer_that_is_none_is_refused_and_not_kept(served: Served, body: object) -> None:
    first = served.booth.state()["question"]["id"]
    said = json.loads(json.dumps(body).replace("FIRST", first))
    status, _ = served.ask("POST", "/vote", said, Origin=f"http://{served.host}")
    assert status == 400
    assert served.booth.path.read_bytes() == b""
    assert served.ask("POST", "/undo", {}, Origin=f"http://{served.host}")[0] == 400


@pytest.mark.parametrize(
    "path", ["/cells.json", "/picture/x/left", "/picture/../../etc/passwd", "/..%2f..%2fetc"]
)
def test_nothing_but_the_page_and_its_pictures_is_served(served: Served, path: str) -> None:
    assert served.ask("GET", path)[0] == 404


def test_it_listens_on_the_loopback_address_alone(served: Served) -> None:
    assert served.server.server_address[0] == "127.0.0.1"


def test_a_grid_without_a_choice_and_a_name_that_is_none_are_refused(tmp_path: Path) -> None:
    cells = make_grid(tmp_path / "cells")
    with pytest.raises(ValueError, match="cannot name a voter"):
        open_booth(cells, "../anna", tmp_path / "votes")
    text = (cells / "cells.json").read_text()
    (cells / "cells.json").write_text(text.replace("2" * 64, "1" * 64).replace("3" * 64, "1" * 64))
    with pytest.raises(ValueError, match="no two models of different weights"):
        open_booth(cells, "anna", tmp_path / "votes")
    with pytest.raises(FileNotFoundError, match=r"stages\.grid_cells"):
        open_booth(tmp_path / "nowhere", "anna", tmp_path / "votes")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_interrupted(tmp_path: Path, number: int) -> None:
    cells = make_grid(tmp_path / "cells")
    words = [
        "--cells",
        str(cells),
        "--voter",
        "anna",
        "--votes",
        str(tmp_path / "v"),
        "--port",
        "0",
    ]
    command = [sys.executable, "-m", "stages.vote", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert "10 questions: http://127.0.0.1:" in line
        process.send_signal(number)
        try:
            rest = process.communicate(timeout=20)[0]
        finally:
            process.kill()
    assert process.returncode == 0
    assert "0 questions answered in all" in rest


def test_text_of_a_png_is_dropped_and_its_pixels_kept(tmp_path: Path) -> None:
    import io

    cells = make_grid(tmp_path)
    content = (cells / "row1" / "0001.png").read_bytes()
    bare = without_text(content)
    with Image.open(io.BytesIO(content)) as old, Image.open(io.BytesIO(bare)) as new:
        assert old.info
        assert not new.info
        assert old.tobytes() == new.tobytes()
    with pytest.raises(ValueError, match="not a PNG"):
        without_text(b"<html>")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless() as started:
        yield started


def wait_for(page: Page, done: int) -> None:
    """Wait until the page shows that so many are answered; the machine may be at other work."""
    expect(page.locator("#bar")).to_have_js_property("value", done, timeout=PATIENCE_MS)
    expect(page.locator("body")).to_have_attribute("aria-busy", "false", timeout=PATIENCE_MS)


def test_the_page_works_with_keys_mouse_and_a_phone(served: Served, browser: Browser) -> None:
    desk = browser.new_page(viewport={"width": 1280, "height": 800})
    complaints = listen(desk)
    desk.goto(f"http://{served.host}/")
    wait_for(desk, 0)
    for done, key in enumerate(("ArrowLeft", "b", "t", "ArrowUp"), start=1):
        desk.keyboard.press(key)
        wait_for(desk, done)
    desk.keyboard.press("z")
    wait_for(desk, 3)
    desk.get_by_role("button", name="Both bad").click()
    wait_for(desk, 4)
    desk.get_by_role("button", name="The second picture is better").click()
    wait_for(desk, 5)
    assert desk.locator("#count").inner_text() == "final: 5 of 10 answered by anna"
    assert desk.title() == "Which is better?"
    desk.close()

    phone = browser.new_page(viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True)
    complaints += listen(phone)
    phone.goto(f"http://{served.host}/")
    wait_for(phone, 5)
    for done in range(6, 11):
        phone.wait_for_timeout(DOUBLE_CLICK_MS)
        phone.locator("#left").tap()
        wait_for(phone, done)
    assert phone.locator("#end").is_visible()
    assert phone.locator("#left").is_hidden()
    wide = phone.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390
    phone.get_by_role("button", name="Undo").tap()
    wait_for(phone, 9)
    assert phone.locator("#end").is_hidden()
    shown = phone.locator("#prompt").inner_text()
    assert shown in PROMPTS, "a prompt is text, not markup"
    phone.close()
    assert not complaints


@pytest.mark.parametrize("gap_ms", [60, 120, 200])
def test_a_second_press_does_not_answer_for_a_pair_that_nobody_looked_at(
    served: Served, browser: Browser, gap_ms: int
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(f"http://{served.host}/")
    wait_for(page, 0)
    presses = (
        "document.getElementById('left').click()",
        "document.getElementById('right').click()",
        "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', bubbles: true}))",
    )
    for done, press in enumerate(presses, 1):
        # within the page: a busy machine would stretch the gap on the way there
        page.evaluate(f"gap => {{ {press}; setTimeout(() => {press}, gap); }}", gap_ms)
        page.wait_for_timeout(gap_ms)
        wait_for(page, done)
        page.wait_for_timeout(DOUBLE_CLICK_MS)
    page.close()


def test_a_key_held_down_answers_once(served: Served, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(f"http://{served.host}/")
    wait_for(page, 0)
    for done, key in enumerate(("a", "Enter"), start=1):
        page.locator("#left").focus()
        for _ in range(3):  # without a release between: as a held key repeats
            page.keyboard.down(key)
            wait_for(page, done)
        page.keyboard.up(key)
    page.close()


def test_a_second_tab_is_shown_what_the_first_did_and_takes_back_nothing_of_it(
    served: Served, browser: Browser
) -> None:
    first, second = (browser.new_page() for _ in range(2))
    for page in (first, second):
        page.goto(f"http://{served.host}/")
        wait_for(page, 0)
    first.keyboard.press("a")
    wait_for(first, 1)
    second.keyboard.press("b")
    expect(second.locator("#trouble")).to_contain_text("Another tab went on")
    wait_for(second, 1)
    second.keyboard.press("b")
    wait_for(second, 2)
    expect(second.locator("#trouble")).to_be_empty()
    first.keyboard.press("z")
    wait_for(first, 2)
    expect(first.locator("#trouble")).to_contain_text("nothing was changed")
    assert len(served.booth.path.read_bytes().splitlines()) == 2
    first.keyboard.press("z")
    wait_for(first, 1)
    for page in (first, second):
        page.close()


@pytest.mark.parametrize("vote", ["", None, 1])
def test_what_is_not_the_last_answer_is_not_taken_back(served: Served, vote: object) -> None:
    status, content = served.ask("POST", "/undo", {"vote": vote}, Origin=f"http://{served.host}")
    assert status == 409
    assert json.loads(content) == served.booth.state()
    assert served.booth.path.read_bytes() == b""


def test_the_page_says_so_when_the_booth_is_closed(served: Served, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"http://{served.host}/")
    wait_for(page, 0)
    page.route("**/vote", lambda route: route.abort())
    page.keyboard.press("a")
    expect(page.locator("#trouble")).to_contain_text("nothing was lost")
    page.close()
