"""A real HTTP server on loopback that holds pictures and misbehaves by name."""

import asyncio
import hashlib
import io
import random
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from PIL import Image

FOLDER = "/attachments/1008571045445882941/1141181543921971739"


def png(name: str, side_px: int = 32) -> bytes:
    """Draw noise that depends on the name alone."""
    seed = hashlib.sha256(name.encode()).digest()
    pixels = random.Random(seed).randbytes(side_px * side_px * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", (side_px, side_px), pixels).save(file, "PNG")
    return file.getvalue()


def png_of(width: int, height: int, *pixels: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """Make a PNG whose checksums are right, of parts of compressed pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = b"".join(chunk(b"IDAT", part) for part in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + parts + chunk(b"IEND", b"")


class ImageServer:
    """Answers by the last part of the path, without its suffix; unknown names get a picture."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.asked: Counter[str] = Counter()  # by name
        self.sent: Counter[str] = Counter()  # bytes of bodies of "part-…", by name
        self.asked_at: list[float] = []  # time.monotonic
        self.user_agents: set[str] = set()
        self.port = 0

    def link(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}{FOLDER}/{name}.png"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        name = request.path.rsplit("/", 1)[-1].removesuffix(".png")
        self.asked[name] += 1
        self.asked_at.append(time.monotonic())
        self.user_agents.add(request.headers["User-Agent"])
        await asyncio.sleep(self.delay_s)
        kind, _, rest = name.partition("-")
        if kind in ("once", "wait", "cut") and rest != "always" and self.asked[name] > 1:
            kind = ""
        if kind == "slow":
            await asyncio.sleep(30)
        if kind in ("cut", "endless"):
            return await self.stream(kind, request)
        if kind == "longer":
            return await self.longer_than_told(name, request)
        if kind == "part":
            return self.part_answer(name, request)
        return self.whole_answer(kind, rest, name)

    def whole_answer(self, kind: str, rest: str, name: str) -> web.Response:
        content = png(name)
        middle = len(content) // 2
        if kind in ("status", "once"):
            return web.Response(status=int(rest))
        if kind == "wait":
            return web.Response(status=429, headers={"Retry-After": rest})
        if kind == "to":
            target = {"file": "file:///etc/hostname", "self": f"{name}.png"}
            target["nonsense"] = "http://[x/"
            target["private"] = self.link("fox").replace("127.0.0.1", "127.0.0.2")
            return web.Response(status=302, headers={"Location": target.get(rest, f"{rest}.png")})
        if kind == "robots":
            return web.Response(body=content, headers={"X-Robots-Tag": rest})
        bodies = {
            "html": b"<!DOCTYPE html><p>no longer there</p>",
            "short": content[:-700],
            "noend": content[:-12],
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "claims": png_of(60_000, 60_000, zlib.compress(bytes(100))),
            "small": png(name, 8),
        }
        return web.Response(body=bodies.get(kind, content), content_type="image/png")

    def tag(self, name: str) -> str:
        return f'"{hashlib.sha256(png(name)).hexdigest()}"'

    def part_answer(self, name: str, request: web.Request) -> web.Response:
        """Give the rest that is asked for, if the asker has this version's beginning."""
        content, headers = png(name), {"ETag": self.tag(name)}
        first, status = 0, 200
        if request.headers.get("If-Range") == self.tag(name):
            first, status = int(request.headers["Range"][len("bytes=") : -1]), 206
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self.sent[name] += len(content) - first
        return web.Response(body=content[first:], status=status, headers=headers)

    async def longer_than_told(self, name: str, request: web.Request) -> web.StreamResponse:
        """Send a whole picture whose Content-Length is too small."""
        content = png(name)
        response = web.StreamResponse(headers={"Content-Length": str(len(content) - 700)})
        await response.prepare(request)
        await response.write(content[:-700])
        assert request.transport
        request.transport.write(content[-700:])
        request.transport.close()
        return response

    async def stream(self, kind: str, request: web.Request) -> web.StreamResponse:
        headers = {"Content-Length": "4000"} if kind == "cut" else {}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(png(kind)[:2000])
        for _ in range(10_000 if kind == "endless" else 0):
            await response.write(bytes(1 << 16))
        assert request.transport
        request.transport.close()
        return response


@contextmanager
def serving(server: ImageServer) -> Iterator[ImageServer]:
    """Run the server in a thread of its own, on a free port of loopback."""
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.port = runner.addresses[0][1]

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
