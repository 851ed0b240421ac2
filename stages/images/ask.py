"""Ask one address for a picture, patiently and politely, and write down what comes."""

import asyncio
from collections.abc import Mapping
from typing import Self
from urllib.parse import unquote, urljoin, urlsplit

import aiohttp

from stages.harness.patience import LONGEST_RETRY_AFTER_S, back_off_s
from stages.images.address import PrivateAddressError, modest_socket, public_socket
from stages.images.answer import REDIRECTS, Again, judge_status
from stages.images.buckets import Buckets
from stages.images.download_params import DownloadParams
from stages.images.link import host_key, is_link, original
from stages.images.outcome import Failed, Source
from stages.images.pace import Pace
from stages.images.part import Part
from stages.images.robots import ROBOT, disallows

MAX_REDIRECTS = 5


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


class Asker:
    """Asks web servers and buckets; a context, for it holds connections."""

    def __init__(self, params: DownloadParams) -> None:
        """Open nothing yet to anybody.

        Args:
            params: the section `download`.
        """
        self.params = params
        self.pace = Pace(params.requests_per_second)
        self.buckets = Buckets(params.connections)
        # mirrors may stand in one's own network: params are no strangers' words
        self.sessions: Mapping[Source, aiohttp.ClientSession] = {
            "mirror": open_session(params, allow_private=True),
            "link": open_session(params, params.allow_private_addresses),
        }

    async def __aenter__(self) -> Self:
        """Be ready."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let all connections go."""
        for session in self.sessions.values():
            await session.close()
        await self.buckets.close()

    async def ask(self, link: str, part: Part, source: Source) -> Failed | None:
        """Ask until there is a final answer or no try left; None: `part` holds all of the body."""
        address = original(link)
        host, reason = host_key(address), ""
        for tries in range(self.params.retries + 1):
            if self.pace.rest_s(host) > LONGEST_RETRY_AFTER_S:  # by a word to another link
                return Failed("rate_limited")
            answer = await self._ask_once(address, part, source)
            if not isinstance(answer, Again):
                return answer
            reason = answer.reason
            if answer.wait_s is not None:
                self.pace.hold(host, answer.wait_s)
                if answer.wait_s > LONGEST_RETRY_AFTER_S:
                    break
            elif tries < self.params.retries:
                await asyncio.sleep(back_off_s(tries))
        return Failed(reason)

    async def _ask_once(self, address: str, part: Part, source: Source) -> Failed | Again | None:
        """Ask for what is not there yet; None: it came."""
        try:
            if address.startswith("s3:"):
                async with asyncio.timeout(self.params.timeout_s):
                    return await self._ask_bucket(address, part)
            return await self._ask_server(address, part, source)
        except (aiohttp.InvalidURL, UnicodeError):  # the latter of a host that no DNS could hold
            return Failed("bad_link")
        except TimeoutError:
            return Again("timeout")
        except aiohttp.ClientConnectorError as error:
            private = isinstance(error.os_error, PrivateAddressError)
            return Failed("private_address") if private else Again("unreachable")
        except aiohttp.ClientError:
            return Again("unreachable")

    async def _ask_server(self, link: str, part: Part, source: Source) -> Failed | Again | None:
        """Ask a web server, through redirects."""
        headers, first = part.range_headers(), urlsplit(link).netloc
        for _ in range(MAX_REDIRECTS + 1):
            # the params vouch for a mirror's own host, not for where it leads
            is_vouched = urlsplit(link).netloc == first
            session = self.sessions[source if is_vouched else "link"]
            await self.pace.wait(host_key(link))
            async with session.get(link, allow_redirects=False, headers=headers) as response:
                if response.status not in REDIRECTS:
                    answer = await self._read(response, part)
                    if isinstance(answer, Again) and answer.wait_s is not None:
                        self.pace.hold(host_key(link), answer.wait_s)  # who said it
                    return answer
                where = response.headers.get("Location", "")
            try:
                link = urljoin(link, where)
            except ValueError:  # such as http://[
                return Failed("bad_link")
            if not is_link(link):
                return Failed("bad_link")
        return Failed("redirects")

    async def _read(self, response: aiohttp.ClientResponse, part: Part) -> Failed | Again | None:
        """Judge an answer by its head, then take its body."""
        if verdict := judge_status(response.status, response.headers.get("Retry-After")):
            if response.status == 416:  # what is there is no beginning of it
                part.forget()
            return verdict
        if disallows(response.headers.getall("X-Robots-Tag", [])):
            return Failed("robots")
        length, limit = response.content_length or 0, self.params.max_bytes
        pieces = response.content.iter_any()
        return await part.take(response.status, response.headers, length, pieces, limit)

    async def _ask_bucket(self, address: str, part: Part) -> Failed | Again | None:
        """Ask a bucket for an object."""
        parts = urlsplit(address)
        await self.pace.wait(host_key(address))
        key = unquote(parts.path).removeprefix("/")
        return await self.buckets.ask(parts.netloc, key, part, self.params.max_bytes)
