"""Objects of S3 buckets, through fsspec, with the credentials that AWS's tools use."""

from typing import Any

from stages.images.answer import Again
from stages.images.outcome import Failed
from stages.images.part import Part

CONNECT_TIMEOUT_S = 10
PIECE_BYTES = 1 << 18
# S3 has no If-Range: of another version it gives no part, and is asked again for the whole
HEADER_NAMES = {"Range": "Range", "If-Range": "IfMatch"}


class Buckets:
    """A client that is opened when it is first needed, which few downloads do."""

    def __init__(self, connections: int) -> None:
        """Open nothing yet.

        Args:
            connections: at once.
        """
        self._connections = connections
        self._client: Any = None

    async def ask(self, bucket: str, key: str, part: Part, max_bytes: int) -> Failed | Again | None:
        """Ask once for an object, or the rest of one; None: `part` holds all of it."""
        from botocore.exceptions import BotoCoreError  # slow to import, and only buckets need it

        client = await self._opened()
        asked = {HEADER_NAMES[name]: value for name, value in part.range_headers().items()}
        try:
            answer = await client._call_s3("get_object", Bucket=bucket, Key=key, **asked)
        except FileNotFoundError:
            return Failed("gone")
        except PermissionError:
            return Failed("refused")
        except BotoCoreError:  # no way to the server, or no answer
            return Again("unreachable")
        except OSError:  # any other word of the server
            part.forget()  # it may be of another version than what is there
            return Again("server_error")
        status = answer["ResponseMetadata"]["HTTPStatusCode"]
        headers = {"ETag": answer["ETag"], "Content-Range": answer.get("ContentRange", "")}
        length = answer["ContentLength"]
        try:
            async with answer["Body"] as body:
                pieces = body.iter_chunks(PIECE_BYTES)
                return await part.take(status, headers, length, pieces, max_bytes)
        except BotoCoreError:  # cut off in its middle
            return Again("unreachable")

    async def close(self) -> None:
        """Let the connections go."""
        if self._client is not None:
            await (await self._client.set_session()).close()

    async def _opened(self) -> Any:
        if self._client is None:
            import botocore.session
            import s3fs

            is_public = botocore.session.get_session().get_credentials() is None
            self._client = s3fs.S3FileSystem(
                asynchronous=True,
                skip_instance_cache=True,
                anon=is_public,
                config_kwargs={
                    "retries": {"max_attempts": 0},  # trying again is the caller's
                    "connect_timeout": CONNECT_TIMEOUT_S,
                    "max_pool_connections": self._connections,
                },
            )
            self._client.retries = 1
        return self._client
