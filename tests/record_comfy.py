"""Record what a real ComfyUI server and this project's client say to each other.

  python -m tests.record_comfy --server http://127.0.0.1:8188 --checkpoint NAME --broken NAME

NAME is a full-size SD 1.5 among the server's checkpoints, or a file there that it cannot load. A
proxy between the two writes `tests/comfy_recording.jsonl`, which `tests/comfy_server.py` replays:
a line about the server, then every request with its answer and every message of the socket, case
by case. Pictures are of 64 px and two steps, but for one that is interrupted. On a CPU it takes
minutes. Left out are tracebacks, folders of the server's machine, the body of previews, and
answers that repeat the last one to the same request.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

import aiohttp
from aiohttp import WSMsgType, web

from stages.comfy.server import PictureError, Server
from stages.comfy.workflow import Workflow, read_workflow
from stages.drawing.cell import Cell
from tests.imports import ROOT

RECORDING = ROOT / "tests" / "comfy_recording.jsonl"
CELL = Cell(
    weights="0" * 64, config="0" * 64, prompt="cat", negative_prompt="dog", seed=1, width=64,
    height=64, sampler="dpmpp_2m_karras", steps=2, guidance=5.0, clip_skip=1, dtype="float32",
    batch_size=1, compile=False, vae_tile_px=0, engine="comfyui", drawing="recorded",
)  # fmt: skip
TIMEOUT_S = 540.0
LONG = 500  # steps of the picture that is interrupted
HEAD_BYTES = 8  # of a picture: its format, and in a binary message its kind before that
FOLDER = re.compile(r"(?:/[^\s/\"']+)+/(?=models/checkpoints/)")
TRACEBACK = re.compile(r'"traceback":\[(?:"(?:[^"\\]|\\.)*",?)*\]')


@dataclasses.dataclass
class Recorder:
    """A proxy that writes down what passes through it."""

    server: str
    out: TextIO
    case: str = "hello"
    address: str = ""
    started: float = 0.0
    last_answer: str = ""
    prompt_id: str = ""
    steps: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)  # one was told of

    def begin(self, case: str) -> None:
        """Name what comes next."""
        self.case, self.started = case, time.monotonic()
        self.steps.clear()
        print(case, flush=True)

    def note(self, **said: Any) -> None:
        """Write down what passed, unless it is only said again."""
        text = _as_text(said)
        if "request" in said:
            repeated, self.last_answer = text == self.last_answer, text
            if repeated:
                return
        at_ms = round(1000 * (time.monotonic() - self.started))
        line = _as_text({"case": self.case, "at_ms": at_ms, **said})
        line = TRACEBACK.sub('"traceback":[]', FOLDER.sub("", line))
        self.out.write(line + "\n")

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Recorder]:
        """Stand between a client and the server."""
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/ws", self._socket)
        app.router.add_route("*", "/{path:.*}", self._request)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = "http://{}:{}".format(*runner.addresses[0][:2])
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as self.session:
            yield self
        await runner.cleanup()

    async def ask_history(self) -> None:
        """Ask what the server keeps of the last graph, as who heard no message would."""
        async with self.session.get(f"{self.address}/history/{self.prompt_id}") as reply:
            await reply.read()

    async def _request(self, request: web.Request) -> web.Response:
        asked = f"{request.method} {request.path_qs}"
        body = await request.read()
        headers = {"Content-Type": request.content_type} if body else {}
        url = f"{self.server}{request.path_qs}"
        async with self.session.request(request.method, url, data=body, headers=headers) as reply:
            content = await reply.read()
        said = {"body": json.loads(body)} if body else {}
        self.prompt_id = said["body"]["prompt_id"] if body else self.prompt_id
        told = _told(content, reply.content_type)
        if request.path != "/system_stats":  # it describes the machine; the first line says enough
            self.note(request=asked, **said, status=reply.status, type=reply.content_type, **told)
        return web.Response(status=reply.status, body=content, content_type=reply.content_type)

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        self.note(request=f"GET {request.path_qs}", status=101)
        ours = web.WebSocketResponse()
        await ours.prepare(request)
        url = f"{self.server.replace('http', 'ws', 1)}{request.path_qs}"
        async with self.session.ws_connect(url) as theirs:
            waiting = asyncio.create_task(self._until_closed(ours, theirs))
            async for message in theirs:
                if message.type is WSMsgType.TEXT:
                    said = json.loads(message.data)
                    self.note(message=said)
                    if said["type"] == "progress":
                        self.steps.set()
                    await ours.send_str(message.data)
                elif message.type is WSMsgType.BINARY:
                    self.note(**_head(message.data))
                    await ours.send_bytes(message.data)
            await waiting
        return ours

    async def _until_closed(
        self, ours: web.WebSocketResponse, theirs: aiohttp.ClientWebSocketResponse
    ) -> None:
        async for message in ours:
            self.note(from_client=message.data)
        await theirs.close()


def _as_text(said: Mapping[str, Any]) -> str:
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))


def _told(content: bytes, kind: str) -> dict[str, Any]:
    if kind == "application/json":
        return {"answer": json.loads(content)}
    return _head(content)


def _head(picture: bytes) -> dict[str, Any]:
    return {"binary": base64.b64encode(picture[:HEAD_BYTES]).decode(), "bytes": len(picture)}


async def record(recorder: Recorder, checkpoint: str, broken: str, workflow: Workflow) -> None:
    """Have a picture drawn, and another; then see the server refuse, fail and be interrupted."""
    strange = json.loads(json.dumps(workflow.nodes).replace('"KSampler"', '"Sampler9000"'))
    recorder.begin("connect")
    async with Server(recorder.address, TIMEOUT_S) as client:
        for case, cell, name, nodes in (
            ("drawn", CELL, checkpoint, workflow.nodes),
            ("drawn_next", dataclasses.replace(CELL, seed=2), checkpoint, workflow.nodes),
            ("refused", CELL, "gone.safetensors", workflow.nodes),
            ("unknown_node", CELL, checkpoint, strange),
            ("failed", CELL, broken, workflow.nodes),
            ("interrupted", dataclasses.replace(CELL, steps=LONG), checkpoint, workflow.nodes),
        ):
            recorder.begin(case)
            drawing = asyncio.create_task(client.draw(cell, name, Workflow(nodes)))
            if case == "interrupted":
                await _interrupt(recorder)
            try:
                print(f"  {(await drawing).size}")
            except PictureError as error:
                print(f"  {error}")
            await asyncio.sleep(1)  # for what is still said after the last word
            await recorder.ask_history()
        recorder.begin("parted")


async def _interrupt(recorder: Recorder) -> None:
    """Press the cross after the first step of a picture."""
    await recorder.steps.wait()
    async with recorder.session.post(f"{recorder.server}/interrupt", json={}) as reply:
        reply.raise_for_status()


async def describe(server: str) -> dict[str, str]:
    """Say which versions are recorded."""
    async with aiohttp.ClientSession() as session, session.get(f"{server}/system_stats") as reply:
        system = (await reply.json())["system"]
    return {
        "server": f"ComfyUI {system['comfyui_version']}",
        "python": system["python_version"].split()[0],
        "torch": system["pytorch_version"],
    }


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", required=True, metavar="URL")
    parser.add_argument("--checkpoint", required=True, metavar="NAME")
    parser.add_argument("--broken", required=True, metavar="NAME")
    parser.add_argument("--out", type=Path, default=RECORDING, metavar="FILE")
    options = parser.parse_args()
    with options.out.open("w", encoding="utf-8") as out:
        out.write(_as_text(await describe(options.server)) + "\n")
        async with Recorder(options.server, out).listening() as recorder:
            workflow = read_workflow(ROOT / "profiles" / "comfyui.json")
            await record(recorder, options.checkpoint, options.broken, workflow)


if __name__ == "__main__":
    asyncio.run(main())
