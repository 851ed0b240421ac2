"""From an address to a whole file with the wanted hash, over cuts, kills and busy servers."""

import errno
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

from stages.harness.files import sha256_file
from stages.harness.patience import LONGEST_RETRY_AFTER_S, back_off_s, retry_after_s
from stages.harness.progress import Progress, clock
from stages.harness.scratch import exclusive
from stages.remote.address import Remote, authorization
from stages.remote.partial import BLOCK_BYTES, Partial

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5
MAX_TRIES = 6  # in a row without a new byte
TIMEOUT = httpx.Timeout(60.0, connect=30.0)  # for each piece, not for the file
CONTENT_RANGE = re.compile(r"bytes (?P<start>\d{1,19})-\d+/(?P<total>\d{1,19}|\*)")
SERVER_WORD = re.compile(rb"<Code>(\w{1,60})</Code>")  # S3's errors are XML
HEADERS = {"User-Agent": "cosmopolitan", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Again:
    """An answer that may be another one next time."""

    reason: str
    wait_s: float | None = None  # as the server asks; None: it does not say


class ByteProgress(Progress):
    """Shows megabytes."""

    def line(self, elapsed_s: float) -> str:
        """Say how much is there, how fast it comes, and how long the rest will take."""
        text = f"{self.label}: {self.done / 1e6:,.1f}"
        text += f"/{self.total / 1e6:,.1f} MB" if self.total else " MB"
        rate = self.rate(elapsed_s)
        if rate is None:
            return text
        text += f", {rate / 1e6:,.1f} MB/s"
        if self.done < self.total:
            return f"{text}, {clock((self.total - self.done) / rate)} left"
        return text

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._print(f"{self.label}: {text}" + ("\n" if self.is_terminal else ""))


def fetch(
    name: str,
    source: str,
    remote: Remote,
    sha256: str,
    work: Path,
    check_start: Callable[[Path], None],
) -> Path:
    """Bring a file into scratch; an earlier process's part of it is continued.

    Args:
        name: for messages.
        source: the address as a person wrote it, for messages.
        remote: that address.
        sha256: of the whole file, in lower-case digits; it alone decides what is taken.
        work: scratch that outlives the process; each hash has its folder there.
        check_start: raises ValueError if the first block, in the file given, shows another format.

    Returns:
        A file of that hash. It stays in scratch: another run asks for nothing.

    Raises:
        ValueError: if the server has no such file, refuses it, or has another one.
        ConnectionError: if the server cannot be reached, time and again.
        BlockingIOError: if another process fetches it.
        OSError: if the disk is full; what came is kept.
    """
    folder = work / sha256
    whole = folder / "whole"
    with exclusive(folder):
        if whole.is_file():
            if sha256_file(whole) == sha256:
                return whole
            whole.unlink()  # a power cut may leave a name without its bytes
        client = httpx.Client(headers=HEADERS, timeout=TIMEOUT, follow_redirects=False)
        with Partial(folder) as partial, client:
            transfer = Transfer(name, source, remote, sha256, partial, client, check_start)
            transfer.run()
            if partial.sha256 != sha256 and partial.is_joined:
                transfer.progress.say("the parts do not fit together; fetching it from the start")
                partial.restart()
                transfer.run()
            if partial.sha256 != sha256:
                raise ValueError(_wrong_hash(source, sha256, partial, work))
        partial.path.replace(whole)
    return whole


def _wrong_hash(source: str, wanted: str, partial: Partial, work: Path) -> str:
    """Keep a file of another hash under that hash, and say so."""
    kept = work / partial.sha256 / "whole"
    kept.parent.mkdir(exist_ok=True)
    partial.path.replace(kept)
    return (
        f"{source}: its SHA-256 is not the one in the params. Wanted {wanted}, got "
        f"{partial.sha256} ({partial.size:,} bytes). Compare with the hash on the file's page: "
        "the file may have been replaced. If the new one is right, write its hash in the params; "
        "it is kept and will not be fetched again"
    )


class Transfer:
    """Asks one server for one file until all of it is there."""

    def __init__(
        self,
        name: str,
        source: str,
        remote: Remote,
        sha256: str,
        partial: Partial,
        client: httpx.Client,
        check_start: Callable[[Path], None],
    ) -> None:
        self.source, self.remote, self.sha256 = source, remote, sha256
        self.partial, self.client, self.check_start = partial, client, check_start
        self.progress = ByteProgress(name, 0)

    def run(self) -> None:
        """Ask until the file is whole, or there is a final answer or no try left.

        Raises:
            ValueError: if the server refuses, has no such file, or has another one.
            ConnectionError: if tries bring nothing.
            OSError: if this machine's disk is full.
        """
        if self.partial.sha256 == self.sha256:
            return  # killed between the last block and its name
        if self.partial.size:
            self.progress.say(f"going on after the {self.partial.size / 1e6:,.1f} MB kept")
        tries, most = 0, self.partial.size
        while again := self.ask():
            tries = 0 if self.partial.size > most else tries + 1
            most = max(most, self.partial.size)  # a server may send the same part ever again
            if tries >= MAX_TRIES or (again.wait_s or 0.0) > LONGEST_RETRY_AFTER_S:
                asked = f" (asked {tries} times)" if tries > 1 else ""
                raise ConnectionError(
                    f"{self.source}: {again.reason}{asked}. "
                    f"The {self.partial.size:,} bytes that came are kept: start again later"
                )
            wait_s = back_off_s(max(tries, 1) - 1) if again.wait_s is None else again.wait_s
            self.progress.say(f"{again.reason}; asking again in {wait_s:.1f} s")
            time.sleep(wait_s)
        self.progress.close()

    def ask(self) -> Again | None:
        """Ask once for what is missing; None: the file is whole."""
        try:
            with self.answer() as response:
                return self.judge(response) or self.read(response)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise ValueError(f"{self.source}: leads to something that is not a link") from None
        except httpx.TimeoutException as error:
            return Again(f"{error.request.url.host} is silent")
        except httpx.TransportError as error:
            return Again(f"the connection to {error.request.url.host} failed: {error}")

    @contextmanager
    def answer(self) -> Iterator[httpx.Response]:
        """Ask once, through redirects; each server gets its own token or none."""
        link = self.remote.link()
        for _ in range(MAX_REDIRECTS + 1):
            headers = {**self.partial.range_headers(), **authorization(link)}
            with self.client.stream("GET", link, headers=headers) as response:
                self.check_announced(response)
                target = response.headers.get("Location", "")
                if response.status_code not in REDIRECTS or not target:
                    yield response
                    return
            link = self.redirected(link, target)
        raise ValueError(f"{self.source}: more than {MAX_REDIRECTS} redirects")

    def redirected(self, link: str, target: str) -> str:
        """Give the link that a redirect leads to."""
        following = urljoin(link, target)
        schemes = ("https",) if link.startswith("https:") else ("http", "https")
        if urlsplit(following).scheme not in schemes:
            raise ValueError(
                f"{self.source}: redirects to a {urlsplit(following).scheme!r} address, "
                f"not {' or '.join(schemes)}"
            )
        return following

    def check_announced(self, response: httpx.Response) -> None:
        """Believe the Hugging Face Hub when it names another hash: it saves the transfer."""
        announced = response.headers.get("X-Linked-ETag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", announced) and announced != self.sha256:
            raise ValueError(
                f"{self.source}: the server says that its SHA-256 is {announced}, the params say "
                f"{self.sha256}. Nothing was fetched; is it another version of the file?"
            )

    def judge(self, response: httpx.Response) -> Again | None:
        """Say what an answer's status means; None: bytes follow."""
        status = response.status_code
        if status in (200, 206):
            return None
        if status == 416:  # what is kept is longer than the file: of another version
            self.partial.restart()
            return Again("the file has changed", 0.0)
        word = f"{status} {_server_word(response)}".strip()
        if region := response.headers.get("x-amz-bucket-region"):
            word += f", bucket in {region}"
        if status in (408, 429) or status >= 500:
            wait_s = retry_after_s(response.headers.get("Retry-After"))
            return Again(f"the server answers {word}", wait_s)
        is_missing = status in (404, 410)
        advice = self.remote.missing_advice() if is_missing else self.remote.login_advice()
        raise ValueError(f"{self.source}: the server answers {word}. {advice}")

    def read(self, response: httpx.Response) -> Again | None:
        """Write an answer's body down, block by block; None: the file is whole."""
        etag = response.headers.get("ETag", "")
        if response.status_code == 200:
            self.partial.restart(etag)
            total = int(response.headers.get("Content-Length", "0"))
        else:
            found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            # a server that does not know If-Range may continue another version
            is_other = self.partial.etag and etag and etag != self.partial.etag
            if not found or int(found["start"]) != self.partial.size or is_other:
                self.partial.restart()
                return Again("the file has changed", 0.0)
            self.partial.is_joined = True
            total = int(found["total"].replace("*", "0"))
        self.start_progress(total)
        for block in response.iter_raw(BLOCK_BYTES):
            is_first = not self.partial.size
            self.partial.append(block)
            if is_first:
                self.check_first_block()
            self.progress.advance(len(block))
        return None

    def start_progress(self, total: int) -> None:
        """Say how much will come, and stop if the disk has no room for it."""
        self.progress.start(self.partial.size)
        self.progress.total = total
        missing = total - self.partial.size
        if total:
            self.progress.say(f"{missing / 1e6:,.1f} MB to come")
        free = shutil.disk_usage(self.partial.path.parent).free
        if free < missing:
            raise OSError(
                errno.ENOSPC,
                f"{missing / 1e9:,.2f} GB are still to come, and {free / 1e9:,.2f} GB are free. "
                "What came is kept: make room and start again",
                str(self.partial.path),
            )

    def check_first_block(self) -> None:
        """Stop at the first block if it shows that the file is none of those wanted."""
        try:
            self.check_start(self.partial.path)
        except ValueError:
            self.partial.restart()
            raise


def _server_word(response: httpx.Response) -> str:
    """Find the one word by which S3 and the Hugging Face Hub say why they refuse."""
    word: str = response.headers.get("X-Error-Code", "")
    if word.isalnum():
        return word[:60]
    body = next(response.iter_bytes(4096), b"")
    return found[1].decode("ascii", "replace") if (found := SERVER_WORD.search(body)) else ""
