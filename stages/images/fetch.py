"""From a plan to pictures on this machine: mirrors first, then what is kept, then the network."""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

import pyarrow as pa

from stages.images.arrivals import Arrivals
from stages.images.ask import Asker
from stages.images.download_params import DownloadParams
from stages.images.kept import Kept, Packed
from stages.images.metadata import Piece, sha256_parts
from stages.images.mirror import is_address
from stages.images.outcome import PASSING, Failed, Fetched, Outcome, Picture, Source
from stages.images.part import Part
from stages.images.plan import plan, shared_paths
from stages.images.verify import verified

MOST_VERIFIED_AT_ONCE = 4  # each is read whole and may be decoded, which takes memory
PLANNED_AT_ONCE = 256  # links; a link may end while those before it are asked


def fetch_all(
    links: Iterable[pa.RecordBatch],
    kept: Kept,
    params: DownloadParams,
    advance: Callable[[], None],
    arrivals: Arrivals,
) -> None:
    """Find or fetch the picture of each link.

    Args:
        links: of schema plan.LINKS, each of another picture; gone through more than once.
        kept: pictures go there as they come.
        params: the section `download`.
        advance: called after each link.
        arrivals: takes each outcome when it is known, by the link's number from 0 on.

    Raises:
        OSError: if this machine fails, as when its disk is full; no fault of a server raises.
    """
    try:
        asyncio.run(_fetch_all(links, kept, params, advance, arrivals))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _fetch_all(
    links: Iterable[pa.RecordBatch],
    kept: Kept,
    params: DownloadParams,
    advance: Callable[[], None],
    arrivals: Arrivals,
) -> None:
    waiting = enumerate(_planned(links, params))
    with ThreadPoolExecutor(min(MOST_VERIFIED_AT_ONCE, os.cpu_count() or 1)) as threads:
        async with Asker(params) as asker:
            fetcher = Fetcher(asker, threads, kept, params, arrivals)

            async def work() -> None:
                for number, (link, places, reason) in waiting:
                    arrivals.put(number, await fetcher.obtain(link, places, reason))
                    advance()
                    # many outcomes known at once, as of expired links, keep no answer waiting
                    await asyncio.sleep(0)

            async with asyncio.TaskGroup() as group:
                for _ in range(params.connections):
                    group.create_task(work())


def _planned(
    links: Iterable[pa.RecordBatch], params: DownloadParams
) -> Iterator[tuple[str, list[str], str | None]]:
    """Give the rows of the plan; each batch of it is made when it is needed."""
    shared = shared_paths(links) if params.mirrors else frozenset[str]()
    if shared:
        print(
            f"{len(shared):,} path(s) of links stand for several pictures, of other hosts or "
            "queries: no mirror is asked for these, as it keeps one picture a path",
            flush=True,
        )
    for batch in links:
        for first in range(0, len(batch), PLANNED_AT_ONCE):
            few = batch.slice(first, PLANNED_AT_ONCE)
            rows = plan(few, params.mirrors, params.use_links, time.time(), shared)
            yield from zip(*rows.to_pydict().values(), strict=True)


class Fetcher:
    """Turns one row of the plan after another into its outcome."""

    def __init__(
        self,
        asker: Asker,
        threads: ThreadPoolExecutor,
        kept: Kept,
        params: DownloadParams,
        arrivals: Arrivals,
    ) -> None:
        """Keep what all links share.

        Args:
            asker: asks servers.
            threads: read and verify files.
            kept: what earlier runs left.
            params: the section `download`.
            arrivals: where outcomes go.
        """
        self.asker, self.threads, self.kept = asker, threads, kept
        self.params, self.arrivals = params, arrivals
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def obtain(self, link: str, places: list[str], reason: str | None) -> Outcome:
        """Find or fetch the picture of a link.

        Args:
            link: of the picture.
            places: of mirrors, in which it may lie.
            reason: why the link itself is not asked; None: it is.
        """
        outcome: Outcome = Failed("not_mirrored")
        for place in places:
            if is_address(place):
                found = await self.from_network(place, "mirror")
            elif (path := Path(place)).is_file():
                found = await self.judge(path, "mirror")
            else:
                continue
            if isinstance(found, Fetched):
                return found
            if found != Failed("gone"):
                outcome = found
        match reason:
            case "bad_link":
                return Failed(reason)
            case "not_mirrored":  # or what is wrong with the mirrors' picture
                return outcome
            case _:
                return await self.from_network(link, "link", reason)

    async def from_network(self, link: str, source: Source, reason: str | None = None) -> Outcome:
        """Take the picture that is kept, or fetch and keep it, unless there is a reason not to.

        Links of two pictures may lead to one place of a mirror: the second waits for the first.
        """
        async with self._in_turn(link):
            return await self._from_network(link, source, reason)

    async def _from_network(self, link: str, source: Source, reason: str | None) -> Outcome:
        path = self.kept.picture_path(link)
        if packed := self.kept.packed(link):
            if outcome := await self.judge_packed(packed, source, link):
                return outcome
            self.kept.unpack(link)
        if path.is_file():
            try:
                outcome = await self.judge(path, source, link)
            except FileNotFoundError:  # packed meanwhile, for another link to the same place
                return await self._from_network(link, source, reason)
            if outcome not in (Failed("not_an_image"), Failed("broken_image")):
                return outcome
            path.unlink()  # a power cut may leave a name without its bytes
        if reason := self.kept.failure(link) or reason:
            return Failed(reason)
        outcome = await self.fetch(link, path, source)
        if isinstance(outcome, Failed):
            self.kept.remember(link, outcome.reason)
        return outcome

    def _in_turn(self, link: str) -> asyncio.Lock:
        """Give the lock of a link, which is there as long as somebody holds it or waits."""
        return self._turns.setdefault(link, asyncio.Lock())

    async def fetch(self, link: str, path: Path, source: Source) -> Outcome:
        """Ask for a picture; keep it at `path`."""
        path.parent.mkdir(exist_ok=True)
        part = Part(path)
        if failed := await self.asker.ask(link, part, source):
            if failed.reason not in PASSING:  # else another run goes on with what came
                part.forget()
            return failed
        outcome = await self.judge(part.body, source, link)
        if isinstance(outcome, Fetched) or outcome == Failed("too_small"):
            part.body.replace(path)  # sound, so that another min_side_px need not ask again
        part.forget()
        return replace(outcome, path=path) if isinstance(outcome, Fetched) else outcome

    async def judge(self, path: Path, source: Source, kept_as: str = "") -> Outcome:
        """Verify a file in a thread, and hold the picture against the params."""

        def check() -> Outcome:
            found = verified(path, self.params.max_bytes, self.params.max_pixels)
            if isinstance(found, Failed):
                return found
            picture, parts = found
            size = path.stat().st_size
            return self.fit(Fetched(path, picture, source, kept_as, original_size=size), parts)

        return await asyncio.get_running_loop().run_in_executor(self.threads, check)

    async def judge_packed(self, packed: Packed, source: Source, kept_as: str) -> Outcome | None:
        """Hold a picture that a pack keeps against the params; None: the pack does not hold it."""
        picture, size = packed.picture, packed.original_size
        path = self.kept.packs / packed.pack
        fetched = Fetched(path, picture, source, kept_as, packed.at, packed.size, size)

        def check() -> Outcome | None:
            content = _sound(fetched)
            return self.fit(fetched, [content]) if content is not None else None

        return await asyncio.get_running_loop().run_in_executor(self.threads, check)

    def fit(self, fetched: Fetched, parts: list[Piece]) -> Outcome:
        """Hold a sound picture against the params, and its bytes in memory if there is room."""
        if reason := unfit(fetched.picture, fetched.original_size, self.params):
            return Failed(reason)
        # without room they are read again in their turn
        has_room = self.arrivals.has_room(sum(map(len, parts)))
        return replace(fetched, parts=parts) if has_room else fetched


def unfit(picture: Picture, size: int, params: DownloadParams) -> str | None:
    """Say why a sound picture is not taken; None: it is.

    Args:
        picture: as it was verified.
        size: of the file as it came, in bytes.
        params: the section `download`.
    """
    if size > params.max_bytes:
        return "too_large"
    if picture.width * picture.height > params.max_pixels:
        return "too_many_pixels"
    if min(picture.width, picture.height) < params.min_side_px:
        return "too_small"
    return None


def _sound(fetched: Fetched) -> bytes | None:
    """Read a picture that was verified before; None if its bytes are others now."""
    try:
        content = fetched.read()
    except FileNotFoundError:
        return None
    return content if sha256_parts([content]) == fetched.picture.sha256 else None
