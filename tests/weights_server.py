"""A real HTTP server on loopback that holds one file, knows ranges, and misbehaves by script."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE_BYTES = 1 << 16


@dataclass
class Answer:
    """What to do with one request, instead of sending the file."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None  # bytes of the file's own answer
    silent_s: float = 0.0


@dataclass
class Asked:
    """One request, and what was sent."""

    path: str
    headers: dict[str, str]  # names in lower case
    at: float  # time.monotonic
    start: int = 0
    sent: int = 0


class WeightsServer:
    """Holds a file; the first requests get the answers of `script`, one each."""

    def __init__(self, content: bytes, etag: str = '"one"') -> None:
        self.content = content
        self.etag = etag
        self.script: list[Answer] = []
        self.always: Answer | None = None
        self.knows_ranges = True
        self.knows_if_range = True
        self.piece_s = 0.0  # pause after each piece
        self.asked: list[Asked] = []
        self.port = 0

    def link(self, name: str = "model.safetensors", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{name}"

    @property
    def sent(self) -> int:
        return sum(asked.sent for asked in self.asked)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = Asked(request.path, headers, time.monotonic())
        self.asked.append(asked)
        other = self.script.pop(0) if self.script else self.always
        if other is None or other.cut_after is not None:
            self.send_file(request, asked, other.cut_after if other else None)
            return
        time.sleep(other.silent_s)
        request.send_response(other.status)
        for name, value in {"Content-Length": str(len(other.body)), **other.headers}.items():
            request.send_header(name, value)
        request.end_headers()
        self.send_body(request, asked, other.body)

    def send_file(
        self, request: BaseHTTPRequestHandler, asked: Asked, cut_after: int | None
    ) -> None:
        size = len(self.content)
        found = re.fullmatch(r"bytes=(\d+)-", asked.headers.get("range", ""))
        is_same = asked.headers.get("if-range", self.etag) == self.etag
        if found and self.knows_ranges and (is_same or not self.knows_if_range):
            asked.start = int(found[1])
            if asked.start >= size:
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{size}")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {asked.start}-{size - 1}/{size}")
        else:
            request.send_response(200)
        body = self.content[asked.start :]
        request.send_header("Content-Length", str(len(body)))
        if self.etag:
            request.send_header("ETag", self.etag)
        request.end_headers()
        self.send_body(request, asked, body if cut_after is None else body[:cut_after])
        request.close_connection = True

    def send_body(self, request: BaseHTTPRequestHandler, asked: Asked, body: bytes) -> None:
        for start in range(0, len(body), PIECE_BYTES):
            piece = body[start : start + PIECE_BYTES]
            try:
                request.wfile.write(piece)
            except OSError:  # the client is gone
                request.close_connection = True
                return
            asked.sent += len(piece)
            time.sleep(self.piece_s)


@contextmanager
def serving(server: WeightsServer) -> Iterator[WeightsServer]:
    """Run the server in threads of its own, on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002, its name too
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.block_on_close = False
        server.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
