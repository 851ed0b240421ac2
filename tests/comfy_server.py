"""A stand-in for ComfyUI servers: their protocol over real sockets, pictures of one colour.

It follows ComfyUI 0.8.1 as its `server.py`, `execution.py` and `main.py` read: which messages
come in which order (`execution_success` before the history is written, `executing` with no node
after it), what `/history` answers meanwhile, what a refused graph looks like. It runs no model.
"""

from __future__ import annotations

import asyncio
import io
import threading
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web
from PIL import Image

HISTORY_LAG_S = 0.03  # between saying that it has finished and knowing it
REFUSED = {
    "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed"},
    "node_errors": {
        "checkpoint": {
            "class_type": "CheckpointLoaderSimple",
            "errors": [
                {
                    "type": "value_not_in_list",
                    "message": "Value not in list",
                    "details": "ckpt_name: 'gone.safetensors' not in []",
                }
            ],
        }
    },
}


@dataclass
class Habits:
    """How a server behaves."""

    checkpoints: list[str]
    dies_after: int | None = None  # pictures; then every connection breaks
    hangs: bool = False  # takes graphs, and never runs them
    refuses: bool = False
    fails_on: str = ""  # a prompt on which its sampler runs out of memory
    drops_socket: bool = False  # closes the socket after each graph is sent
    silent: bool = False  # sends no messages: only the history tells
    old: bool = False  # chooses prompt ids itself, and describes inputs as lists
    wrong_size: bool = False


@dataclass
class FakeComfy:
    """A server on a free port of the loopback address, in a thread of its own."""

    habits: Habits
    graphs: list[dict[str, Any]] = field(default_factory=list)
    drawn: int = 0
    address: str = ""
    _files: dict[str, bytes] = field(default_factory=dict)
    _history: dict[str, Any] = field(default_factory=dict)
    _sockets: dict[str, web.WebSocketResponse] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self) -> FakeComfy:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def serve() -> None:
            app = web.Application()
            app.router.add_get("/object_info/CheckpointLoaderSimple", self._info)
            app.router.add_get("/ws", self._socket)
            app.router.add_post("/prompt", self._prompt)
            app.router.add_get("/history/{id}", self._told)
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
        names = self.habits.checkpoints
        described = [names] if self.habits.old else ["COMBO", {"options": names}]
        inputs = {"required": {"ckpt_name": described}}
        return web.json_response({"CheckpointLoaderSimple": {"input": inputs}})

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        self._alive(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets[request.query["clientId"]] = socket
        await socket.send_json({"type": "status", "data": {"sid": request.query["clientId"]}})
        async for message in socket:
            if message.type is WSMsgType.ERROR:
                break
        return socket

    async def _prompt(self, request: web.Request) -> web.Response:
        self._alive(request)
        body = await request.json()
        if self.habits.refuses:
            return web.json_response(REFUSED, status=400)
        prompt_id = "chosen-by-the-server" if self.habits.old else body["prompt_id"]
        if self.habits.old:
            prompt_id += str(len(self.graphs))
        self.graphs.append(body["prompt"])
        task = asyncio.create_task(self._run(body["prompt"], prompt_id, body["client_id"]))
        self._tasks.add(task)
        return web.json_response({"prompt_id": prompt_id, "number": 1, "node_errors": {}})

    async def _say(self, client: str, kind: str, **data: Any) -> None:
        socket = self._sockets.get(client)
        if socket and not socket.closed and not self.habits.silent:
            await socket.send_json({"type": kind, "data": data})

    async def _run(self, graph: dict[str, Any], prompt_id: str, client: str) -> None:
        if self.habits.hangs:
            return
        if self.habits.drops_socket:
            await self._sockets[client].close()
        known = {"prompt_id": prompt_id}
        await self._say(client, "execution_start", **known)
        await self._say(client, "execution_cached", nodes=["checkpoint"], **known)
        await self._say(client, "executing", node="sampled", **known)
        socket = self._sockets[client]
        if not socket.closed and not self.habits.silent:
            await socket.send_bytes(b"\x00\x00\x00\x01preview")
        await self._say(client, "progress", value=1, max=2, node="sampled", **known)
        # somebody else's graph, which ends before ours
        await self._say(client, "executing", node=None, prompt_id="another")
        if self.habits.fails_on and self.habits.fails_on in graph["positive"]["inputs"]["text"]:
            error = {
                **known,
                "node_type": "KSampler",
                "exception_type": "torch.OutOfMemoryError",
                "exception_message": "Allocation on device",
            }
            self._history[prompt_id] = {
                "outputs": {},
                "status": {"status_str": "error", "messages": [["execution_error", error]]},
            }
            await self._say(client, "execution_error", **error)
            return
        file = self._save(graph)
        if self._is_dead():
            await self._die()
            return
        await self._say(client, "executed", node="picture", output={"images": [file]}, **known)
        await self._say(client, "execution_success", **known)
        await asyncio.sleep(HISTORY_LAG_S)
        self._history[prompt_id] = {
            "outputs": {"picture": {"images": [file]}},
            "status": {"status_str": "success", "completed": True, "messages": []},
        }
        await self._say(client, "executing", node=None, **known)

    def _save(self, graph: dict[str, Any]) -> dict[str, str]:
        sampled, latents = graph["sampled"]["inputs"], graph["latents"]["inputs"]
        side = 8 if self.habits.wrong_size else 0
        size = (latents["width"] + side, latents["height"] + side)
        content = io.BytesIO()
        picture = Image.new("RGB", size, (sampled["seed"], sampled["steps"], 7))
        picture.save(content, "PNG")
        name = f"{graph['picture']['inputs']['filename_prefix']}_00001_.png"
        self._files[name] = content.getvalue()
        self.drawn += 1
        return {"filename": name, "subfolder": "", "type": "output"}

    async def _die(self) -> None:
        for socket in self._sockets.values():
            await socket.close()

    async def _told(self, request: web.Request) -> web.Response:
        self._alive(request)
        prompt_id = request.match_info["id"]
        known = {prompt_id: self._history[prompt_id]} if prompt_id in self._history else {}
        return web.json_response(known)

    async def _view(self, request: web.Request) -> web.Response:
        self._alive(request)
        return web.Response(body=self._files[request.query["filename"]], content_type="image/png")
