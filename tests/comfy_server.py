"""A stand-in for ComfyUI servers: their protocol over real sockets, pictures of one colour.

It follows ComfyUI as files of github.com/Comfy-Org/ComfyUI read, each at a commit of its own:

  server.py 002c3fb9                    routes, status codes, binary frames, the hello of a socket
  execution.py 04e2a914                 order and fields of messages, a refused graph, the history
  main.py 02018c7e                      the history comes before `executing` with no node
  nodes.py 02217e36                     how a loader lists its checkpoints, what SaveImage tells
  comfy_execution/progress.py 1b71f275  `progress_state`

It was written from these, not recorded from a run, and it runs no model. What other versions do
was not read; of them it has only what would matter to us: see `old` and `combo` of `Habits`.
"""

from __future__ import annotations

import asyncio
import io
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web
from PIL import Image

QUEUE = {"status": {"exec_info": {"queue_remaining": 1}}}
HISTORY_LAG_S = 0.03  # between saying that it has finished and knowing it
OUT_OF_MEMORY = "Allocation on device \nThis error means you ran out of memory.\n\nTIPS: draw less"
REFUSED = {
    "error": {
        "type": "prompt_outputs_failed_validation",
        "message": "Prompt outputs failed validation",
        "details": "",
        "extra_info": {},
    },
    "node_errors": {
        "checkpoint": {
            "errors": [
                {
                    "type": "value_not_in_list",
                    "message": "Value not in list",
                    "details": "ckpt_name: 'gone.safetensors' not in []",
                    "extra_info": {"input_name": "ckpt_name", "received_value": "gone.safetensors"},
                }
            ],
            "dependent_outputs": ["picture"],
            "class_type": "CheckpointLoaderSimple",
        }
    },
}
UNKNOWN_NODE = {
    "error": {
        "type": "missing_node_type",
        "message": "Node 'Sampler9000' not found. The custom node may not be installed.",
        "details": "Node ID '#sampled'",
        "extra_info": {"node_id": "sampled", "class_type": "Sampler9000", "node_title": None},
    },
    "node_errors": {},
}


@dataclass
class Habits:
    """How a server behaves."""

    checkpoints: list[str]
    dies_after: int | None = None  # pictures; then every connection breaks
    hangs: bool = False  # takes graphs, and never runs them
    refuses: dict[str, Any] | None = None  # the body of its 400
    fails_on: str = ""  # a prompt on which its sampler runs out of memory
    interrupted_on: str = ""  # a prompt on which somebody presses its cross
    loses: bool = False  # the files that it saved
    cuts: bool = False  # the files that it sends
    drops_socket: bool = False  # closes the socket after each graph is sent
    silent: bool = False  # sends no messages: only the history tells
    old: bool = False  # chooses prompt ids itself
    combo: bool = False  # describes the loader's input as newer kinds of nodes do
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
    _running: str = ""  # whose graph is being run

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
        tip = {"tooltip": "The name of the checkpoint (model) to load."}
        described = ["COMBO", {"options": names}] if self.habits.combo else [names, tip]
        inputs = {"required": {"ckpt_name": described}}
        return web.json_response({"CheckpointLoaderSimple": {"input": inputs}})

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        self._alive(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client = request.query["clientId"]
        self._sockets[client] = socket
        await socket.send_json({"type": "status", "data": {**QUEUE, "sid": client}})
        if self._running == client:  # it comes back in the middle; the message names no graph
            await socket.send_json({"type": "executing", "data": {"node": "sampled"}})
        async for message in socket:
            if message.type is WSMsgType.ERROR:
                break
        return socket

    async def _prompt(self, request: web.Request) -> web.Response:
        self._alive(request)
        body = await request.json()
        if self.habits.refuses:
            return web.json_response(self.habits.refuses, status=400)
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
        self._running = client
        if self.habits.drops_socket:
            await self._sockets[client].close()
        said: list[tuple[str, dict[str, Any]]] = []  # what the history keeps of the messages
        known = {"prompt_id": prompt_id}

        async def note(kind: str, **data: Any) -> None:
            data |= {**known, "timestamp": int(time.time() * 1000)}
            said.append((kind, data))
            await self._say(client, kind, **data)

        await self._say(client, "status", **QUEUE)
        await note("execution_start")
        await note("execution_cached", nodes=["checkpoint"])
        await self._sample(prompt_id, client)
        failure = self._failure(graph)
        outputs: dict[str, Any] = {}
        if failure:
            await note(failure[0], node_id="sampled", node_type="KSampler", **failure[1])
        else:
            file = self._save(graph)
            if self._is_dead():
                await self._die()
                return
            outputs = {"picture": {"images": [file]}}
            node = {"node": "picture", "display_node": "picture"}
            await self._say(client, "executed", **node, output=outputs["picture"], **known)
            await note("execution_success")
        await asyncio.sleep(HISTORY_LAG_S)
        word = "error" if failure else "success"
        self._history[prompt_id] = {
            "prompt": [1, prompt_id, graph, {"client_id": client}, ["picture"]],
            "outputs": outputs,
            "status": {"status_str": word, "completed": not failure, "messages": said},
            "meta": {},
        }
        self._running = ""
        await self._say(client, "status", **QUEUE)
        await self._say(client, "executing", node=None, **known)

    async def _sample(self, prompt_id: str, client: str) -> None:
        known = {"prompt_id": prompt_id}
        await self._say(client, "executing", node="sampled", display_node="sampled", **known)
        state = {"node_id": "sampled", "state": "running", "value": 0.0, "max": 1.0, **known}
        await self._say(client, "progress_state", nodes={"sampled": state}, **known)
        await self._say(client, "progress", value=1, max=2, node="sampled", **known)
        socket = self._sockets[client]
        if not socket.closed and not self.habits.silent:
            jpeg = io.BytesIO()
            Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
            # a preview (1) as JPEG (1)
            await socket.send_bytes(struct.pack(">II", 1, 1) + jpeg.getvalue())
        # somebody else's graph, which ends before ours
        await self._say(client, "executing", node=None, prompt_id="another")

    def _failure(self, graph: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
        """Say what goes wrong with a graph, as a message does: its type and fields."""
        text = graph["positive"]["inputs"]["text"]
        executed = ["checkpoint", "positive"]
        if self.habits.interrupted_on and self.habits.interrupted_on in text:
            return "execution_interrupted", {"executed": executed}
        if self.habits.fails_on and self.habits.fails_on in text:
            return "execution_error", {
                "executed": executed,
                "exception_message": OUT_OF_MEMORY,
                "exception_type": "torch.OutOfMemoryError",
                "traceback": [],
                "current_inputs": {},
                "current_outputs": [],
            }
        return None

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
        content = self._files[request.query["filename"]]
        if self.habits.loses:
            return web.Response(status=404)
        content = content[: len(content) // 2] if self.habits.cuts else content
        return web.Response(body=content, content_type="image/png")
