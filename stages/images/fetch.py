"""From links to pictures on this machine: mirrors first, then what is kept, then the network."""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import aiohttp

from stages.harness.files import sha256_bytes
from stages.harness.params import Params
from stages.harness.patience import LONGEST_RETRY_AFTER_S, back_off_s, retry_after_s
from stages.images.address import PrivateAddressError, modest_socket, public_socket
from stages.images.arrivals import Arrivals
from stages.images.kept import Kept, Packed
from stages.images.link import expires_at, is_link, original, picture_key
from stages.images.mirror import check_address, copy_object, is_address, mirrored
from stages.images.outcome import PASSING, Failed, Fetched, Outcome, Source
from stages.images.part import Part
from stages.images.robots import ROBOT, disallows
from stages.images.verify import verified

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadParams(Params):
    """Section `download`: where pictures come from, and which are taken."""

    mirrors: tuple[str, ...]  # folders, https:// or s3:// addresses, asked in this order
    use_links: bool  # ask the network for what no mirror has
    acknowledge_terms: bool  # a person's word that they may; links are not asked without
    min_side_px: int  # shorter side of the picture
    max_bytes: int  # of one file
    max_pixels: int  # width * height
    connections: int  # at once; politeness rather than speed sets it
    requests_per_second: float  # to one host, redirects and tries again included; 0: any number
    timeout_s: float  # for one picture, from asking to its last byte
    retries: int  # after the first try; of what may pass: 408, 429, 5xx, broken connections
    min_yield: float  # share of rows with a picture; below it the stage fails
    shard_size: int  # pictures in a shard
    allow_private_addresses: bool  # links into one's own network; for servers of one's own

    def __post_init__(self) -> None:
        """Refuse values that no run could mean."""
        if self.use_links and not self.acknowledge_terms:
            raise ValueError(
                "use_links needs acknowledge_terms: true, your word that you may fetch and train "
                "on these pictures. Discord forbids training on message content without "
                "permission, and Midjourney automated collection"
            )
        if not self.use_links and not self.mirrors:
            raise ValueError("name a mirror in mirrors, or set use_links: true")
        for mirror in filter(is_address, self.mirrors):
            check_address(mirror)
        for name in ("max_bytes", "max_pixels", "connections", "timeout_s", "shard_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("min_side_px", "retries", "requests_per_second"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.min_yield <= 1:
            raise ValueError(f"min_yield must lie in [0, 1], got {self.min_yield}")


@dataclass(frozen=True, slots=True)
class Again:
    """An answer that may be another one next time."""

    reason: str  # the outcome, if it stays so
    wait_s: float | None = None  # as the server asks; None: it does not say


class Pace:
    """When each host may be asked again: one answer with Retry-After holds all that ask it."""

    def __init__(self, requests_per_second: float = 0.0) -> None:
        """Start with every host free.

        Args:
            requests_per_second: to one host; 0: any number.
        """
        self._gap_s = 1 / requests_per_second if requests_per_second else 0.0
        self._free_at: dict[str, float] = {}  # by host, on the clock of time.monotonic

    def hold(self, host: str, wait_s: float) -> None:
        """Ask a host nothing for a while."""
        free_at = time.monotonic() + wait_s
        self._free_at[host] = max(free_at, self._free_at.get(host, free_at))

    async def wait(self, host: str) -> None:
        """Sleep until a host may be asked, and let the next one wait its turn after this."""
        while (left_s := self._free_at.get(host, 0.0) - time.monotonic()) > 0:
            await asyncio.sleep(left_s)
        if self._gap_s:
            self._free_at[host] = time.monotonic() + self._gap_s


def fetch_all(
    links: Iterable[str],
    kept: Kept,
    params: DownloadParams,
    advance: Callable[[], None],
    arrivals: Arrivals | None = None,
) -> dict[str, Outcome]:
    """Find or fetch the picture of each link.

    Args:
        links: of different `picture_key`.
        kept: pictures go there as they come.
        params: the section `download`.
        advance: called after each link.
        arrivals: takes each outcome when it is known, for a reader in another thread.

    Returns:
        An outcome for each link.

    Raises:
        OSError: if this machine fails, as when its disk is full; no fault of a server raises.
    """
    arrivals = arrivals or Arrivals()
    try:
        asyncio.run(_fetch_all(links, kept, params, advance, arrivals))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return arrivals.outcomes


async def _fetch_all(
    links: Iterable[str],
    kept: Kept,
    params: DownloadParams,
    advance: Callable[[], None],
    arrivals: Arrivals,
) -> None:
    waiting = iter(links)
    # Threads bound the memory: only so many files are read and decoded at once.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        async with (
            open_session(params, params.allow_private_addresses) as session,
            open_session(params, allow_private=True) as own,  # params are no strangers' words
        ):
            fetcher = Fetcher(session, own, threads, kept, params, arrivals)

            async def work() -> None:
                for link in waiting:
                    arrivals.put(link, await fetcher.obtain(link))
                    advance()

            async with asyncio.TaskGroup() as group:
                for _ in range(params.connections):
                    group.create_task(work())


def open_session(params: DownloadParams, allow_private: bool) -> aiohttp.ClientSession:
    """Open a session that keeps to the params and brings no cookies from answer to answer."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=params.connections,
            limit_per_host=params.connections,
            socket_factory=modest_socket if allow_private else public_socket,
        ),
        timeout=aiohttp.ClientTimeout(total=params.timeout_s),
        headers={"User-Agent": ROBOT, "Accept": "image/*", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # a picture comes as it is, and no small answer grows large
    )


class Fetcher:
    """Turns one link after another into its outcome."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        own: aiohttp.ClientSession,
        threads: ThreadPoolExecutor,
        kept: Kept,
        params: DownloadParams,
        arrivals: Arrivals,
    ) -> None:
        """Keep what all links share.

        Args:
            session: asks links of the export.
            own: asks mirrors, which may stand in one's own network.
            threads: read and verify files.
            kept: what earlier runs left.
            params: the section `download`.
            arrivals: where outcomes go.
        """
        self.arrivals = arrivals
        self.session, self.own, self.threads = session, own, threads
        self.kept, self.params = kept, params
        self.pace = Pace(params.requests_per_second)

    async def obtain(self, link: str) -> Outcome:
        """Find or fetch the picture of a link."""
        if not is_link(link):
            return Failed("bad_link")
        outcome: Outcome = Failed("not_mirrored")
        for place in mirrored(link, self.params.mirrors):
            if isinstance(place, Path):
                found = await self.judge(place, "mirror")
            else:
                found = await self.from_network(place, "mirror")
            if isinstance(found, Fetched):
                return found
            if found != Failed("gone"):
                outcome = found
        return await self.from_network(link, "link") if self.params.use_links else outcome

    async def from_network(self, link: str, source: Source) -> Outcome:
        """Take the picture that is kept, or fetch it and keep it."""
        path = self.kept.picture_path(link)
        if packed := self.kept.packed(link):
            if outcome := await self.judge_packed(packed, source, link):
                return outcome
            self.kept.unpack(link)
        if path.is_file():
            outcome = await self.judge(path, source, link)
            if outcome not in (Failed("not_an_image"), Failed("broken_image")):
                return outcome
            path.unlink()  # a power cut may leave a name without its bytes
        if reason := self.kept.failure(link):
            return Failed(reason)
        ends_at = expires_at(link)
        if ends_at is not None and ends_at <= time.time():
            return Failed("expired")
        outcome = await self.fetch(link, path, source)
        if isinstance(outcome, Failed):
            self.kept.remember(link, outcome.reason)
        return outcome

    async def fetch(self, link: str, path: Path, source: Source) -> Outcome:
        """Ask for a picture until there is a final answer or no try left; keep it at `path`."""
        path.parent.mkdir(exist_ok=True)
        part = Part(path)
        if failed := await self.ask_patiently(original(link), part, source):
            part.forget()
            return failed
        outcome = await self.judge(part.body, source, link)
        if isinstance(outcome, Fetched) or outcome == Failed("too_small"):
            part.body.replace(path)  # sound, so that another min_side_px need not ask again
        part.forget()
        return replace(outcome, path=path) if isinstance(outcome, Fetched) else outcome

    async def ask_patiently(self, link: str, part: Part, source: Source) -> Failed | None:
        """Ask, and again where that may help; None: the answer's body is there."""
        host = urlsplit(link).netloc
        reason = ""
        for tries in range(self.params.retries + 1):
            if link.startswith("s3:"):
                answer = await self.copy(link, part)
            else:
                answer = await self.ask(
                    link, part, self.own if source == "mirror" else self.session
                )
            if not isinstance(answer, Again):
                return answer
            reason = answer.reason
            if answer.wait_s is not None and answer.wait_s > LONGEST_RETRY_AFTER_S:
                break
            if answer.wait_s is not None:
                self.pace.hold(host, answer.wait_s)
            elif tries < self.params.retries:
                await asyncio.sleep(back_off_s(tries))
        return Failed(reason)

    async def copy(self, address: str, part: Part) -> Failed | Again | None:
        """Ask a bucket once."""
        part.forget()
        await self.pace.wait(urlsplit(address).netloc)
        copying = asyncio.to_thread(copy_object, address, part.body, self.params.max_bytes)
        try:
            reason = await asyncio.wait_for(copying, self.params.timeout_s)
        except TimeoutError:
            return Again("timeout")
        if not reason:
            return None
        return Again(reason) if reason in PASSING else Failed(reason)

    async def ask(
        self, link: str, part: Part, session: aiohttp.ClientSession
    ) -> Failed | Again | None:
        """Ask once, through redirects, for what is not there yet; None: the body is there."""
        headers = part.range_headers()
        try:
            for _ in range(MAX_REDIRECTS + 1):
                await self.pace.wait(urlsplit(link).netloc)
                async with session.get(link, allow_redirects=False, headers=headers) as response:
                    if response.status not in REDIRECTS:
                        return await self.read(response, part)
                    link = urljoin(link, response.headers.get("Location", ""))
                if not is_link(link):
                    return Failed("bad_link")
            return Failed("redirects")
        except (aiohttp.InvalidURL, UnicodeError):  # the latter of a host that no DNS could hold
            return Failed("bad_link")
        except TimeoutError:
            return Again("timeout")
        except aiohttp.ClientConnectorError as error:
            private = isinstance(error.os_error, PrivateAddressError)
            return Failed("private_address") if private else Again("unreachable")
        except aiohttp.ClientError:
            return Again("unreachable")

    async def read(self, response: aiohttp.ClientResponse, part: Part) -> Failed | Again | None:
        """Judge an answer by its head, then write its body down piece by piece."""
        if verdict := judge_status(response.status, response.headers.get("Retry-After")):
            if response.status == 416:  # what is there is no beginning of it
                part.forget()
            return verdict
        if disallows(response.headers.getall("X-Robots-Tag", [])):
            return Failed("robots")
        written = part.begin(response.status, response.headers)
        if written is None:
            return Again("server_error")
        if written + (response.content_length or 0) > self.params.max_bytes:
            return Failed("too_large")
        with part.body.open("ab", buffering=0) as file:
            async for piece in response.content.iter_any():
                written += len(piece)
                if written > self.params.max_bytes:
                    return Failed("too_large")
                file.write(piece)
        return None

    async def judge(self, path: Path, source: Source, kept_as: str = "") -> Outcome:
        """Verify a file in a thread, and hold the picture against the params."""

        def check() -> Outcome:
            found = verified(path, self.params.max_bytes, self.params.max_pixels)
            if isinstance(found, Failed):
                return found
            picture, content = found
            if min(picture.width, picture.height) < self.params.min_side_px:
                return Failed("too_small")
            size = path.stat().st_size
            fetched = Fetched(path, picture, source, kept_as, original_size=size)
            return self.with_content(fetched, content)

        return await asyncio.get_running_loop().run_in_executor(self.threads, check)

    async def judge_packed(self, packed: Packed, source: Source, kept_as: str) -> Outcome | None:
        """Hold a picture that a pack keeps against the params; None: the pack does not hold it."""
        picture, size = packed.picture, packed.original_size
        path = self.kept.packs / packed.pack
        fetched = Fetched(path, picture, source, kept_as, packed.at, packed.size, size)

        def check() -> Outcome | None:
            content = _sound(fetched)
            if content is None:
                return None
            if size > self.params.max_bytes:
                return Failed("too_large")
            if picture.width * picture.height > self.params.max_pixels:
                return Failed("too_many_pixels")
            if min(picture.width, picture.height) < self.params.min_side_px:
                return Failed("too_small")
            return self.with_content(fetched, content)

        return await asyncio.get_running_loop().run_in_executor(self.threads, check)

    def with_content(self, fetched: Fetched, content: bytes) -> Fetched:
        """Hold the bytes in memory if there is room; else they are read again in their turn."""
        return (
            replace(fetched, content=content) if self.arrivals.has_room(len(content)) else fetched
        )


def _sound(fetched: Fetched) -> bytes | None:
    """Read a picture that was verified before; None if its bytes are others now."""
    try:
        content = fetched.read()
    except FileNotFoundError:
        return None
    return content if sha256_bytes(content) == fetched.picture.sha256 else None


def judge_status(status: int, retry_after: str | None) -> Failed | Again | None:
    """Say what an HTTP status means for a picture; None: here it comes."""
    match status:
        case 200 | 206:
            return None
        case 416:
            return Again("server_error")
        case 404 | 410:
            return Failed("gone")
        case 408:
            return Again("timeout", retry_after_s(retry_after))
        case 429:
            return Again("rate_limited", retry_after_s(retry_after))
        case _ if status >= 500:
            return Again("server_error", retry_after_s(retry_after))
        case _:
            return Failed("refused")


def one_link_per_picture(links: Sequence[str]) -> dict[str, str]:
    """Choose, of the links to one picture, the one that ends last.

    Returns:
        The chosen link for each link given; bad links stand for themselves.
    """
    best: dict[str, str] = {}
    keys = {link: picture_key(link) if is_link(link) else link for link in links}
    for link, key in keys.items():
        best[key] = max(best.get(key, link), link, key=_ending)
    return {link: best[key] for link, key in keys.items()}


def _ending(link: str) -> tuple[int, str]:
    return (expires_at(link) or 0 if is_link(link) else 0), link
