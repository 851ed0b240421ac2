"""The polling booth: a page on this machine that asks, and a file that keeps the answers.

It listens on the loopback address alone, answers only requests that name it as their host, takes
answers only from its own page, and writes to one file: the voter's.
"""

import fcntl
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from uuid import uuid4

from stages.choice.pairs import Pair, is_swapped
from stages.choice.votes import answers
from stages.images.text_chunk import without_text

LOOPBACK = "127.0.0.1"
PAGE = Path(__file__).with_name("booth.html")
MAX_BODY_BYTES = 10_000  # an answer has about 50
SIDES = {"left": 0, "right": 1}
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class StaleError(ValueError):
    """A page asked for what another page of the same voter has overtaken."""


class Booth:
    """One voter's questions and answers."""

    def __init__(
        self, grid: str, voter: str, folder: Path, pairs: list[Pair], weights: dict[str, str]
    ) -> None:
        """Take up where the voter left off.

        Args:
            grid: what is voted on.
            voter: the name of a file.
            folder: of the voters' files.
            pairs: the questions in order.
            weights: SHA-256 by model.

        Raises:
            BlockingIOError: if the voter's file is in use by another booth.
        """
        self.grid, self.voter, self.pairs, self.weights = grid, voter, pairs, weights
        self.path = folder / f"{voter}.jsonl"
        self.problems: list[str] = []
        self._lock = Lock()
        self._by_id = {pair.id: pair for pair in pairs}
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self._open()
        self._given: dict[str, str] = {}  # vote by question, in the order of the answers
        for _, line in answers(self.path, self.problems):
            # the same two pictures may stand in two grids, and each counts its own votes
            if line["grid"] == grid and line.get("question") in self._by_id:
                self._given.pop(line["question"], None)
                self._given[line["question"]] = line["id"]

    def _open(self) -> BinaryIO:
        file = self.path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BlockingIOError(
                f"{self.path}: {self.voter} is voting elsewhere. End that booth, or name another "
                "voter"
            ) from None
        return file

    def close(self) -> None:
        """Let go of the voter's file; one that was never written to is taken away."""
        if self._is_in_place() and not self.path.stat().st_size:
            self.path.unlink()
        self._file.close()

    def _is_in_place(self) -> bool:
        """Tell whether the file that was opened still stands under its name."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def state(self) -> dict[str, Any]:
        """Say what the page shows: the next question, the one after it, and how far it is.

        `last` is the vote that undo would take back.
        """
        waiting = (pair for pair in self.pairs if pair.id not in self._given)
        now, after = next(waiting, None), next(waiting, None)
        return {
            "grid": self.grid,
            "voter": self.voter,
            "done": len(self._given),
            "total": len(self.pairs),
            "last": self._last(),
            "question": now and {
                "id": now.id,
                "prompt": now.a.prompt,
                "width": now.a.width,
                "height": now.a.height,
            },
            "after": after and after.id,
        }  # fmt: skip

    def picture(self, question: str, side: str) -> Path | None:
        """Find what stands at a side of a question, below the grid's folder; None if nothing."""
        pair = self._by_id.get(question)
        if pair is None or side not in SIDES:
            return None
        shown = (pair.b, pair.a) if is_swapped(pair, self.voter) else (pair.a, pair.b)
        return Path(shown[SIDES[side]].file or "")

    def vote(self, question: str, answer: str) -> None:
        """Keep an answer.

        Args:
            question: its id.
            answer: left, right, tie or both_bad.

        Raises:
            ValueError: if there is no such question or answer.
            StaleError: if it was answered.
        """
        with self._lock:
            pair = self._by_id.get(question)
            if pair is None or answer not in (*SIDES, "tie", "both_bad"):
                raise ValueError(f"no question {question!r}, or no answer {answer!r}")
            if question in self._given:
                raise StaleError(f"question {question} was answered; undo takes an answer back")
            swapped = is_swapped(pair, self.voter)
            if answer in SIDES:
                answer = "ab"[SIDES[answer] ^ swapped]
            vote = uuid4().hex
            a, b = pair.a, pair.b
            self._append(
                {
                    "id": vote,
                    "grid": self.grid,
                    "question": question,
                    "a": a.model,
                    "b": b.model,
                    "a_weights": self.weights[a.model],
                    "b_weights": self.weights[b.model],
                    "a_cell": a.address,
                    "b_cell": b.address,
                    "prompt": a.as_written,
                    "replaced": a.replaced,
                    "negative_prompt": a.negative_prompt,
                    "seed": a.seed,
                    "width": a.width,
                    "height": a.height,
                    "setting": a.setting,
                    "left": b.model if swapped else a.model,
                    "answer": answer,
                    "time": datetime.now(UTC).isoformat(timespec="seconds"),
                }
            )
            self._given[question] = vote

    def undo(self, vote: str) -> None:
        """Take the last answer back; the line that says so is added, nothing is rewritten.

        Args:
            vote: the answer that the page takes for the last one.

        Raises:
            StaleError: if it is not.
        """
        with self._lock:
            if not self._given or vote != self._last():
                raise StaleError(f"vote {vote!r} is not the last one; that is {self._last()!r}")
            question = next(reversed(self._given))
            self._append({"undo": vote})
            del self._given[question]

    def _last(self) -> str | None:
        """Name the last answer, if there is one."""
        return next(reversed(self._given.values()), None)

    def _append(self, line: dict[str, Any]) -> None:
        """Add a line, after the break that a kill may have cut off the last one.

        Raises:
            RuntimeError: if another file stands in the place of the one that was opened.
        """
        if not self._is_in_place():
            raise RuntimeError(
                f"{self.path} was replaced or taken away, as Git does when it changes a file. "
                "This answer was not kept: end the booth and start it again"
            )
        text = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        size = self.path.stat().st_size
        if size:
            with self.path.open("rb") as file:
                file.seek(size - 1)
                text = text if file.read() == b"\n" else b"\n" + text
        self._file.write(text)
        self._file.flush()
        os.fsync(self._file.fileno())


def serve(booth: Booth, cells: Path, port: int) -> ThreadingHTTPServer:
    """Open a booth on the loopback address; its `serve_forever` answers.

    Args:
        booth: what to ask.
        cells: the grid's folder.
        port: 0 takes any that is free.

    Raises:
        OSError: if the port cannot be had.
    """

    class Handler(_Handler):
        pass

    Handler.booth, Handler.cells = booth, cells
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    except (OSError, OverflowError) as error:  # the latter of a number that is no port's
        raise OSError(
            f"port {port} of {LOOPBACK} cannot be had: {error}. Is another booth open? Name "
            "another by --port; 0 takes any that is free"
        ) from None
    number = server.server_address[1]
    Handler.hosts = frozenset(f"{host}:{number}" for host in (LOOPBACK, "localhost"))
    return server


class _Handler(BaseHTTPRequestHandler):
    """Answers the page's requests."""

    booth: Booth
    cells: Path
    hosts: frozenset[str]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "booth", ""

    def do_GET(self) -> None:
        """Send the page, the state or a picture."""
        self._guarded(self._get)

    def do_POST(self) -> None:
        """Take an answer, or take one back."""
        self._guarded(self._post)

    def _guarded(self, answer: Callable[[], None]) -> None:
        """Refuse who does not speak to this booth: a name that leads here, or another page."""
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in self.hosts:
            names = " or ".join(sorted(self.hosts))
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, f"this booth is {names}, and nothing else")
        elif origin is not None and origin not in {f"http://{host}" for host in self.hosts}:
            self._refuse(HTTPStatus.FORBIDDEN, "a request of another page")
        else:
            answer()

    def _get(self) -> None:
        match urlsplit(self.path).path.strip("/").split("/"):
            case [""]:
                self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
            case ["state"]:
                self._send_state()
            case ["picture", question, side] if file := self.booth.picture(question, side):
                self._send(without_text((self.cells / file).read_bytes()), "image/png")
            case _:
                self._refuse(HTTPStatus.NOT_FOUND, "nothing here")

    def _post(self) -> None:
        if self.headers.get("Origin") is None:
            self._refuse(HTTPStatus.FORBIDDEN, "an answer must come from the page")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too long for an answer")
            return
        body = self.rfile.read(int(length))
        try:
            match self.path:
                case "/vote":
                    said = json.loads(body)
                    self.booth.vote(said["question"], said["answer"])
                case "/undo":
                    self.booth.undo(json.loads(body)["vote"])
                case _:
                    self._refuse(HTTPStatus.NOT_FOUND, "nothing here")
                    return
        except StaleError:
            self._send_state(HTTPStatus.CONFLICT)
            return
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        except (OSError, RuntimeError) as error:  # the disk is full, or the file is not there
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            return
        self._send_state()

    def _send_state(self, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(self.booth.state()).encode(), "application/json", status)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True  # an unread body must not be taken for a request
        self._send(why.encode(), "text/plain; charset=utf-8", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in SECURITY.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, the name is the library's
        """Keep silent: the page says what happened."""
