"""A stand-in for ComfyUI servers: what a real one said, over real sockets, to other graphs.

`tests/comfy_recording.jsonl` holds what ComfyUI 0.3.64 said to this project's client, request by
request and message by message (`tests/record_comfy.py` recorded it). Here it is said again, with
the ids, files and graphs of now in the place of those of then; pictures are of one colour, and no
model is run.

Beyond the recording go the faults of `Habits`, and two habits of other versions, which were read,
not recorded: see `old` and `combo`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from aiohttp import WSMsgType, web
from PIL import Image

from tests.record_comfy import RECORDING

HISTORY_LAG_S = 0.03  # between saying that it has finished and knowing it
LOADER = "/object_info/CheckpointLoaderSimple"
Line = dict[str, Any]  # of the recording


@cache
def recorded(case: str) -> list[Line]:
    """List what was said in one case, in order."""
    with RECORDING.open(encoding="utf-8") as file:
        lines = [json.loads(text) for text in file]
    found = [line for line in lines[1:] if line["case"] == case]
    assert found, f"{RECORDING}: no case {case!r}"
    return found


def recorded_answer(case: str, request: str) -> Line:
    """Find the last line of a case about a request that begins so."""
    return [line for line in recorded(case) if line.get("request", "").startswith(request)][-1]


def retold(line: Any, now: dict[str, str]) -> Any:
    """Say something again with the names of now in the place of those of then."""
    text = json.dumps(line)
    for then, name in now.items():
        text = text.replace(then, name)
    return json.loads(text)


@dataclass
class Habits:
    """How a server behaves."""

    checkpoints: list[str]
    dies_after: int | None = None  # pictures; then every connection breaks
    busy_for: int = 0  # graphs that it answers with 503 before it takes the first
    hangs: bool = False  # takes graphs, and never runs them
    forgets: int = 0  # of the first graphs that it takes it knows nothing any more
    refuses: str = ""  # every graph, as in this case of the recording
    fails_on: str = ""  # a prompt on which it cannot load the checkpoint
    interrupted_on: str = ""  # a prompt on which somebody presses its cross
    loses: bool = False  # the files that it saved
    cuts: bool = False  # the files that it sends
    drops_socket: bool = False  # closes the socket after each graph is sent
    chatty: bool = False  # a custom node sends messages of its own kinds
    silent: bool = False  # sends no messages: only the history tells
    old: bool = False  # chooses prompt ids itself
    combo: bool = False  # describes the loader's input as newer kinds of nodes do
    wrong_size: bool = False
    version: str = ""  # of another ComfyUI than the recorded one
    black_for: str = ""  # a checkpoint of NaN: the server saves a black picture and says nothing


@dataclass
class FakeComfy:
    """A server on a free port of the loopback address, in a thread of its own."""

    habits: Habits
    graphs: list[dict[str, Any]] = field(default_factory=list)
    drawn: int = 0
    busy: int = 0  # how often it said so
    address: str = ""
    _files: dict[str, bytes] = field(default_factory=dict)
    _history: dict[str, Any] = field(default_factory=dict)
    _sockets: dict[str, web.WebSocketResponse] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _queued: set[str] = field(default_factory=set)  # ids of graphs that are not yet in the history
    _running: str = ""  # whose graph is being run

    def start(self) -> FakeComfy:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def serve() -> None:
            app = web.Application()
            app.router.add_get(LOADER, self._info)
            app.router.add_get("/system_stats", self._stats)
            app.router.add_get("/ws", self._socket)
            app.router.add_post("/prompt", self._prompt)
            app.router.add_get("/history/{id}", self._told)
            app.router.add_get("/queue", self._queue)
            app.router.add_get("/view", self._view)
            self._runner = web.AppRunner(app, shutdown_timeout=0.1)
            await self._runner.setup()
            site = web.TCPSite(self._runner, "127.0.0.1", 0)
            await site.start()
            host, port = self._runner.addresses[0][:2]
            self.address = f"http://{host}:{port}"
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(serve())
            self._loop.run_forever()
            self._loop.close()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def stop(self) -> None:
        async def end() -> None:
            for task in self._tasks:
                task.cancel()
            await self._runner.cleanup()
            self._loop.stop()

        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(end(), self._loop)
            self._thread.join(10)

    def _is_dead(self) -> bool:
        return self.habits.dies_after is not None and self.drawn >= self.habits.dies_after

    def _alive(self, request: web.Request) -> None:
        if self._is_dead():
            assert request.transport
            request.transport.abort()
            raise web.HTTPServiceUnavailable

    async def _info(self, request: web.Request) -> web.Response:
        self._alive(request)
        answer = retold(recorded_answer("connect", f"GET {LOADER}")["answer"], {})
        required = answer["CheckpointLoaderSimple"]["input"]["required"]
        names = self.habits.checkpoints
        if self.habits.combo:
            required["ckpt_name"] = ["COMBO", {"options": names}]
        else:
            required["ckpt_name"][0] = names
        return web.json_response(answer)

    async def _stats(self, request: web.Request) -> web.Response:
        self._alive(request)
        with RECORDING.open(encoding="utf-8") as file:
            recorded_one = json.loads(file.readline())
        version = self.habits.version or recorded_one["server"].removeprefix("ComfyUI ")
        system = {"comfyui_version": version, "pytorch_version": recorded_one["torch"]}
        return web.json_response({"system": system, "devices": [{"name": "cpu", "type": "cpu"}]})

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        self._alive(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client = request.query["clientId"]
        self._sockets[client] = socket
        hello = next(line["message"] for line in recorded("drawn") if "sid" in str(line))
        hello["data"]["sid"] = client
        await socket.send_json(hello)
        for text in ('{"type": "mine", "data": "hello"}', "[1]", "plain") * self.habits.chatty:
            await socket.send_str(text)
        if self._running == client:  # it comes back in the middle; the message names no graph
            await socket.send_json({"type": "executing", "data": {"node": "sampled"}})
        async for message in socket:
            if message.type is WSMsgType.ERROR:
                break
        return socket

    async def _prompt(self, request: web.Request) -> web.Response:
        self._alive(request)
        body = await request.json()
        if self.busy < self.habits.busy_for:
            self.busy += 1
            return web.Response(status=503)
        if self.habits.refuses:
            refusal = recorded_answer(self.habits.refuses, "POST /prompt")
            return web.json_response(refusal["answer"], status=refusal["status"])
        case = self._case(body["prompt"])
        then = recorded_answer(case, "POST /prompt")
        prompt_id = body["prompt_id"]
        if self.habits.old:
            prompt_id = f"chosen-by-the-server{len(self.graphs)}"
        self.graphs.append(body["prompt"])
        now = {then["body"]["prompt_id"]: prompt_id, then["body"]["client_id"]: body["client_id"]}
        if len(self.graphs) <= self.habits.forgets:
            return web.json_response(retold(then["answer"], now))
        self._queued.add(prompt_id)
        run = self._run(case, body["prompt"], prompt_id, body["client_id"], now)
        self._tasks.add(asyncio.create_task(run))
        return web.json_response(retold(then["answer"], now))

    def _case(self, graph: dict[str, Any]) -> str:
        """Choose what happens to a graph."""
        text = graph["positive"]["inputs"]["text"]
        if self.habits.interrupted_on and self.habits.interrupted_on in text:
            return "interrupted"
        if self.habits.fails_on and self.habits.fails_on in text:
            return "failed"
        return "drawn_next" if self.graphs else "drawn"

    async def _run(
        self, case: str, graph: dict[str, Any], prompt_id: str, client: str, now: dict[str, str]
    ) -> None:
        """Say again what was said while a graph ran, and know afterwards what was known."""
        if self.habits.hangs:
            return
        self._running = client
        if self.habits.drops_socket:
            await self._sockets[client].close()
        if case.startswith("drawn"):
            then = _saved(recorded_answer(case, "GET /history")["answer"])
            now |= {then: self._save(graph)}
            if self._is_dead():
                await self._die()
                return
        said = [line for line in recorded(case) if "message" in line or "binary" in line]
        last = next(i for i, line in enumerate(said) if _ends(line))
        await self._say(client, said[:1], now)
        # somebody else's graph, which ends before ours
        other = {"message": {"type": "executing", "data": {"node": None, "prompt_id": "another"}}}
        await self._say(client, [other, *said[1 : last + 1]], now)
        await asyncio.sleep(HISTORY_LAG_S)
        told = retold(recorded_answer(case, "GET /history")["answer"], now)
        told[prompt_id]["prompt"][2] = graph
        self._history |= told
        self._queued.discard(prompt_id)
        self._running = ""
        await self._say(client, said[last + 1 :], now)

    async def _say(self, client: str, lines: list[Line], now: dict[str, str]) -> None:
        for line in lines:
            socket = self._sockets.get(client)
            if not socket or socket.closed or self.habits.silent:
                return
            if "message" in line:
                await socket.send_json(retold(line["message"], now))
            else:
                await socket.send_bytes(base64.b64decode(line["binary"]).ljust(line["bytes"]))

    def _save(self, graph: dict[str, Any]) -> str:
        """Keep the picture that a graph would draw, and give its file's name."""
        sampled, latents = graph["sampled"]["inputs"], graph["latents"]["inputs"]
        side = 8 if self.habits.wrong_size else 0
        size = (latents["width"] + side, latents["height"] + side)
        content = io.BytesIO()
        is_black = self.habits.black_for == graph["checkpoint"]["inputs"]["ckpt_name"]
        colour = (0, 0, 0) if is_black else (sampled["seed"], sampled["steps"], 7)
        picture = Image.new("RGB", size, colour)
        picture.save(content, "PNG")
        name = f"{graph['picture']['inputs']['filename_prefix']}_00001_.png"
        self._files[name] = content.getvalue()
        self.drawn += 1
        return name

    async def _die(self) -> None:
        for socket in self._sockets.values():
            await socket.close()

    async def _told(self, request: web.Request) -> web.Response:
        self._alive(request)
        prompt_id = request.match_info["id"]
        known = {prompt_id: self._history[prompt_id]} if prompt_id in self._history else {}
        return web.json_response(known)

    async def _queue(self, request: web.Request) -> web.Response:
        self._alive(request)
        pending = [[number, name, {}, {}, []] for number, name in enumerate(self._queued)]
        return web.json_response({"queue_running": [], "queue_pending": pending})

    async def _view(self, request: web.Request) -> web.Response:
        self._alive(request)
        content = self._files[request.query["filename"]]
        if self.habits.loses:
            return web.Response(status=404)
        content = content[: len(content) // 2] if self.habits.cuts else content
        return web.Response(body=content, content_type="image/png")


def _saved(history: dict[str, Any]) -> str:
    """Find the file that a history tells of."""
    (told,) = history.values()
    return str(told["outputs"]["picture"]["images"][0]["filename"])


def _ends(line: Line) -> bool:
    """Tell whether the server says that a graph has been run, before its history knows it."""
    kinds = ("execution_success", "execution_error", "execution_interrupted")
    return "message" in line and line["message"]["type"] in kinds
