"""One ComfyUI server: ask it for a picture, wait for its word, fetch the file.

Its races, and what is done about them: it says `execution_success` before its history tells the
files, so the history is asked until it knows; a message may be lost with its socket, so the
history is asked now and then while we wait; a graph may be forgotten, as by somebody who clears the
queue or a start anew, so the queue is asked, too; an equal graph sent twice is answered with the
first one's file, so every request names a file of its own.

Tried against ComfyUI 0.3.64, whose words `tests/comfy_recording.jsonl` keeps. It knows SD 1.5 of
full size alone: of the mini model it says that it cannot detect the type.
"""

import asyncio
import io
import json
import time
from types import TracebackType
from typing import Any
from uuid import uuid4

import aiohttp
from PIL import Image

from stages.comfy.workflow import Workflow
from stages.drawing.cell import Cell

CONNECT_TIMEOUT_S = 10.0
ASK_AGAIN_S = 2.0  # without a message, the history is asked this often
HISTORY_TRIES = 100  # after it says that it has finished
HISTORY_PAUSE_S = 0.05
MAX_MESSAGE_BYTES = 64 * 2**20  # previews are pictures
LOST = (aiohttp.ClientError, TimeoutError, OSError)  # what happens where a server goes away
LOADER = "CheckpointLoaderSimple"
FAILURES = ("execution_error", "execution_interrupted")


class PictureError(RuntimeError):
    """The server could not draw one picture, and goes on."""


class SlowError(ConnectionError):
    """The server took longer than it may; to ask it again would take as long."""


class GraphForgottenError(ConnectionError):
    """The server knows nothing of a graph that it took; it may be asked again."""


class Server:
    """A server that listens at an address; use it as an async context."""

    def __init__(self, address: str, timeout_s: float) -> None:
        """Remember where it is.

        Args:
            address: as http://127.0.0.1:8188.
            timeout_s: for one picture.
        """
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"{address!r} is no server's address; write http://HOST:PORT")
        self.address, self.timeout_s = address.rstrip("/"), timeout_s
        self.client = uuid4().hex
        self.checkpoints: list[str] = []
        self.version = ""

    async def __aenter__(self) -> "Server":
        """Connect, and ask which checkpoints it has, and what it draws with."""
        timeout = aiohttp.ClientTimeout(total=self.timeout_s, connect=CONNECT_TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout)
        try:
            info = await self._json(f"/object_info/{LOADER}")
            self.checkpoints = _choices(info[LOADER]["input"]["required"]["ckpt_name"])
            self.version = _version(await self._json("/system_stats"))
            self._socket = await self._connect()
        except (*LOST, KeyError, IndexError, TypeError, ValueError) as error:
            await self._session.close()
            raise ConnectionError(
                f"{self.address}: no ComfyUI server answers there ({type(error).__name__}: {error})"
            ) from None
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Part from it."""
        await self._socket.close()
        await self._session.close()

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        socket = "ws" + self.address.removeprefix("http")
        return await self._session.ws_connect(
            f"{socket}/ws?clientId={self.client}", max_msg_size=MAX_MESSAGE_BYTES, heartbeat=20
        )

    def checkpoint(self, cell: Cell) -> str | None:
        """Find what the server calls the file of a cell's weights; None if it has none.

        Only a name that tells the weights will do: several runs have an `epoch_010`, and a picture
        by another's would be kept as this one's. Folders of the server do not matter.
        """
        wanted = checkpoint_name(cell)
        for name in self.checkpoints:
            if name.replace("\\", "/").rsplit("/", 1)[-1] == wanted:
                return name
        return None

    async def draw(self, cell: Cell, checkpoint: str, workflow: Workflow) -> Image.Image:
        """Draw a cell.

        Raises:
            PictureError: if the server says that it cannot.
            SlowError: if it took longer than its time.
            ConnectionError: if it did not answer, or answered that it is not able to now.
        """
        prompt_id = str(uuid4())
        graph = workflow.filled(cell, checkpoint, f"{cell.address[:16]}-{prompt_id[:8]}")
        try:
            async with asyncio.timeout(self.timeout_s):
                prompt_id = await self._send(graph, prompt_id)
                content = await self._fetch(await self._outputs(prompt_id))
        except LOST as error:
            kind = SlowError if isinstance(error, TimeoutError) else ConnectionError
            raise kind(f"{self.address}: lost ({_words(error)})") from error
        try:
            with Image.open(io.BytesIO(content)) as picture:
                drawn = picture.convert("RGB")
        except (OSError, ValueError) as error:
            raise PictureError(f"what came is no whole picture: {error}") from None
        if drawn.size != (cell.width, cell.height):
            size = f"{drawn.width} x {drawn.height}"
            raise PictureError(f"{size} px came, {cell.width} x {cell.height} was asked for")
        return drawn

    async def _send(self, graph: dict[str, Any], prompt_id: str) -> str:
        body = {"prompt": graph, "client_id": self.client, "prompt_id": prompt_id}
        async with self._session.post(f"{self.address}/prompt", json=body) as response:
            if response.status == 400:
                raise PictureError(f"{self.address} refused the graph: {await _reason(response)}")
            response.raise_for_status()
            answer = _answered(await response.json())
        return str(answer.get("prompt_id", prompt_id))  # an older server chooses its own

    async def _outputs(self, prompt_id: str) -> dict[str, Any]:
        """Wait until the server has finished, and give what its history tells of it."""
        while not await self._has_finished(prompt_id):
            told = await self._history(prompt_id)
            if not told and not await self._is_queued(prompt_id):
                told = await self._history(prompt_id)  # it may have finished in between
                if not told:
                    raise GraphForgottenError
            if told:
                return told
        for _ in range(HISTORY_TRIES):
            if told := await self._history(prompt_id):
                return told
            await asyncio.sleep(HISTORY_PAUSE_S)
        raise PictureError(f"{self.address} says that it has finished, but its history is empty")

    async def _has_finished(self, prompt_id: str) -> bool:
        """Listen for a while; tell whether the server said that it has finished with a graph.

        Raises:
            PictureError: if it said that it failed.
        """
        until = time.monotonic() + ASK_AGAIN_S
        while (left := until - time.monotonic()) > 0:
            try:
                message = await self._socket.receive(timeout=left)
            except TimeoutError:
                break
            if message.type is aiohttp.WSMsgType.TEXT:
                if _ends(_object(message.data), prompt_id):
                    return True
            elif message.type is not aiohttp.WSMsgType.BINARY:  # closed: what it said is lost
                self._socket = await self._connect()
        return False

    async def _is_queued(self, prompt_id: str) -> bool:
        """Tell whether the server runs a graph, or is going to."""
        queue = await self._json("/queue")
        waiting = [*queue.get("queue_running", []), *queue.get("queue_pending", [])]
        return any(prompt_id in item[:2] for item in waiting)  # its number and its id come first

    async def _history(self, prompt_id: str) -> dict[str, Any] | None:
        """Give what the history tells of a graph; None while it knows nothing.

        Raises:
            PictureError: if it tells of an error.
        """
        told = (await self._json(f"/history/{prompt_id}")).get(prompt_id)
        if not told:
            return None
        status = told.get("status") or {}
        if status.get("status_str") == "error":
            errors = [said for kind, said in status.get("messages", []) if kind in FAILURES]
            raise PictureError(_said(errors[0] if errors else {}))
        return dict(told.get("outputs") or {})

    async def _fetch(self, outputs: dict[str, Any]) -> bytes:
        pictures = [one for node in outputs.values() for one in node.get("images", [])]
        saved = [one for one in pictures if one.get("type") == "output"] or pictures
        if not saved:
            raise PictureError("the graph saved no picture; does it end in SaveImage?")
        place = {key: saved[0].get(key, "") for key in ("filename", "subfolder", "type")}
        async with self._session.get(f"{self.address}/view", params=place) as response:
            if 400 <= response.status < 500:
                raise PictureError(f"{self.address} has no file {place['filename']} any more")
            response.raise_for_status()
            return await response.read()

    async def _json(self, path: str) -> dict[str, Any]:
        async with self._session.get(f"{self.address}{path}") as response:
            response.raise_for_status()
            return _answered(await response.json())


def _object(text: str) -> dict[str, Any]:
    """Read a message; empty if it is none of ComfyUI's own, as a custom node may send any."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _answered(answer: Any) -> dict[str, Any]:
    """Give an answer that is an object.

    Raises:
        ConnectionError: if it is none: what answers is no ComfyUI, or not now.
    """
    if not isinstance(answer, dict):
        raise ConnectionError("its answer is no object")
    return answer


def _words(error: Exception) -> str:
    kind = type(error).__name__
    return f"{kind} {error.status}" if isinstance(error, aiohttp.ClientResponseError) else kind


def checkpoint_name(cell: Cell) -> str:
    """Name a cell's weights as a server's file has to: by the first digits of their SHA-256."""
    return f"{cell.weights[:16]}.safetensors"


def _choices(described: list[Any]) -> list[str]:
    """Read the names that an input may take, as nodes of either kind of definition list them."""
    kind = described[0]
    return list(kind if isinstance(kind, list) else described[1]["options"])


def _version(stats: dict[str, Any]) -> str:
    """Name what determines a server's pixels, besides the graph."""
    system, devices = stats["system"], stats["devices"]
    return (
        f"ComfyUI {system.get('comfyui_version', 'of unknown version')}, "
        f"torch {system.get('pytorch_version', 'of unknown version')}, {devices[0]['type']}"
    )


def _ends(message: dict[str, Any], prompt_id: str) -> bool:
    """Tell whether a message says that a graph has been run.

    Raises:
        PictureError: if it says that the graph failed.
    """
    said = message.get("data")
    if not isinstance(said, dict) or said.get("prompt_id") != prompt_id:
        return False
    match message.get("type"):
        case kind if kind in FAILURES:
            raise PictureError(_said(said))
        case "executing":
            return said.get("node") is None
        case kind:
            return kind == "execution_success"


def _said(error: dict[str, Any]) -> str:
    kind, text = error.get("exception_type", ""), error.get("exception_message", "")
    first_line = next(iter(text.strip().splitlines()), "")  # advice for the page follows it
    words = f"{kind}: {first_line}".strip(": ") or "it was interrupted"
    return f"{words} (node {error.get('node_type', 'unknown')})"


async def _reason(response: aiohttp.ClientResponse) -> str:
    """Read why a graph was refused: the first node's first error."""
    try:
        answer = json.loads(await response.text())
        for node, said in (answer.get("node_errors") or {}).items():
            error = said["errors"][0]
            return f"node {node} ({said.get('class_type')}): {error['message']}: {error['details']}"
        return str(answer["error"]["message"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return "no reason given"
