"""Cells spread over ComfyUI servers: each takes the next that it can draw, and one may be lost."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from PIL import Image

from stages.comfy.server import PictureError, Server, SlowError, checkpoint_name
from stages.comfy.workflow import Workflow
from stages.drawing.cell import Cell
from stages.harness.counted import counted

Done = Callable[[str, Cell, Image.Image | Exception], None]
IDLE_S = 0.05
PAUSES_S = (1.0, 5.0, 15.0, 30.0)  # before each new try: a server may be starting again


@dataclass(slots=True)
class Work:
    """Cells that are still to be drawn, and how many are being drawn."""

    waiting: list[tuple[str, Cell]]  # model and cell
    drawing: int = 0
    lost: list[str] = field(default_factory=list)  # servers, and why


def draw_on_servers(
    servers: Sequence[str],
    timeout_s: float,
    workflow: Workflow,
    cells: Sequence[tuple[str, Cell]],
    done: Done,
) -> None:
    """Draw cells on servers.

    Args:
        servers: addresses.
        timeout_s: for one picture; a server that takes longer counts as lost at once.
        workflow: the template.
        cells: each with its model's name.
        done: called with each picture, or what the server said of it.

    Raises:
        ConnectionError: if no server answers, or all were lost before the work was done.
        ValueError: if no server has a model's checkpoint.
    """
    asyncio.run(_draw(servers, timeout_s, workflow, cells, done))


def version_of(servers: Sequence[str], timeout_s: float) -> str:
    """Ask servers what they draw with; those that do not answer are left out.

    Raises:
        ConnectionError: if none answers.
        ValueError: if they draw with different code, or on different kinds of devices.
    """

    async def ask() -> str:
        async with AsyncExitStack() as stack:
            return _one_version(await _opened(stack, servers, timeout_s, []))

    return asyncio.run(ask())


async def _opened(
    stack: AsyncExitStack, servers: Sequence[str], timeout_s: float, lost: list[str]
) -> list[Server]:
    """Connect to those that answer, and note in `lost` why others do not."""
    open_ones = []
    for address in servers:
        try:
            open_ones.append(await stack.enter_async_context(Server(address, timeout_s)))
        except ConnectionError as error:
            lost.append(str(error))
    if not open_ones:
        raise ConnectionError("; ".join(lost))
    return open_ones


def _one_version(servers: Sequence[Server]) -> str:
    first = servers[0]
    for other in servers:
        if other.version != first.version:
            raise ValueError(
                f"{first.address} draws with {first.version}, but {other.address} with "
                f"{other.version}: pictures of one model would differ by who drew them. Name "
                "servers of one version and one kind of device in grid.comfyui.servers"
            )
    return first.version


async def _draw(
    servers: Sequence[str],
    timeout_s: float,
    workflow: Workflow,
    cells: Sequence[tuple[str, Cell]],
    done: Done,
) -> None:
    work = Work(list(cells))
    async with AsyncExitStack() as stack:
        open_ones = await _opened(stack, servers, timeout_s, work.lost)
        if not (planned := cells[0][1].drawing).startswith(version := _one_version(open_ones)):
            raise ConnectionError(
                f"the servers that answer now draw with {version}, but the grid was planned for "
                f"{planned}; start again"
            )
        _check_checkpoints(open_ones, cells)
        await asyncio.gather(*(_serve(server, workflow, work, done) for server in open_ones))
    if work.waiting:
        raise ConnectionError(
            f"not drawn: {counted(len(work.waiting), 'cell')}, for all servers that could are "
            f"lost: {'; '.join(work.lost)}. What was drawn is kept; start again"
        )
    for said in work.lost:
        done_without(said)


def done_without(said: str) -> None:
    """Say that the work was done, but not with every server."""
    print(f"done without a server: {said}", flush=True)


def _check_checkpoints(servers: Sequence[Server], cells: Sequence[tuple[str, Cell]]) -> None:
    for model, cell in dict(cells).items():
        if not any(server.checkpoint(cell) for server in servers):
            raise ValueError(
                f"no server has the checkpoint of {model}: put its file, or a link to it, anywhere "
                f"below the folder of checkpoints as {checkpoint_name(cell)}, the first 16 digits "
                "of its SHA-256; another name could be another model's. "
                f"Asked: {', '.join(server.address for server in servers)}"
            )


async def _serve(server: Server, workflow: Workflow, work: Work, done: Done) -> None:
    """Let one server draw until nothing is left for it, or it is lost.

    One that answers with an error, or not at all, is tried again after each of PAUSES_S; meanwhile
    others may take the cell. A picture sets the count back.
    """
    pauses = list(PAUSES_S)
    while work.waiting or work.drawing:
        taken = _take(server, work)
        if taken is None:
            if not work.drawing:
                return
            await asyncio.sleep(IDLE_S)  # another may be lost, and leave its cell to this one
            continue
        model, cell, checkpoint = taken
        work.drawing += 1
        try:
            drawn: Image.Image | Exception = await server.draw(cell, checkpoint, workflow)
        except PictureError as error:
            drawn = error
        except ConnectionError as error:
            work.waiting.insert(0, (model, cell))
            if isinstance(error, SlowError) or not pauses:
                work.lost.append(str(error))
                return
            pause = pauses.pop(0)
            print(f"{error}; trying again in {pause:g} s", flush=True)
            await asyncio.sleep(pause)
            continue
        finally:
            work.drawing -= 1
        pauses = list(PAUSES_S)
        done(model, cell, drawn)


def _take(server: Server, work: Work) -> tuple[str, Cell, str] | None:
    """Take the first cell whose checkpoint the server has; the order keeps a model's together."""
    for number, (model, cell) in enumerate(work.waiting):
        if checkpoint := server.checkpoint(cell):
            del work.waiting[number]
            return model, cell, checkpoint
    return None
