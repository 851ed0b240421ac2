"""Addresses of files elsewhere: which link to ask, with which token, and what to do when refused.

A link may hold a signature and a header a token: neither is ever printed. Messages name the
address as the params have it.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import parse_qsl, quote, urlsplit

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
HUB_ADDRESS = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@]+?)(?:@(?P<revision>[^@]+))?")
BUCKET_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]+)/(?P<key>[^?#]+)")
CIVITAI = "https://civitai.com"
SECRETS = {"token", "access_token", "api_key", "apikey", "key", "signature", "x-amz-signature"}
LINK_LIFE_S = 3600  # a signed link is asked at once; each try signs another


class Remote(Protocol):
    """A file on another machine."""

    def link(self) -> str:
        """Give the link to ask now; it may hold a signature."""

    def login_advice(self) -> str:
        """Say what to do when the server refuses."""

    def missing_advice(self) -> str:
        """Say what to do when the server has no such file."""


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file at an http(s) link."""

    url: str

    def link(self) -> str:
        """Give the link itself."""
        return self.url

    def login_advice(self) -> str:
        """Name the variable that this server's token comes from, if there is one."""
        if variable := _token_variable(self.url):
            return _token_advice(variable, f"an API key of your account at {_origin(self.url)}")
        return (
            "The server wants a login: fetch the file in a browser, put it into the repository's "
            "folder, and name its path as the source"
        )

    def missing_advice(self) -> str:
        """Advise to look."""
        return "Does the address open in a browser?"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository on the Hugging Face Hub, or on a mirror that HF_ENDPOINT names."""

    repo: str
    file: str
    revision: str

    @property
    def page(self) -> str:
        """Name the repository's page."""
        return f"{hub_endpoint()}/{self.repo}"

    def link(self) -> str:
        """Give the link that redirects to the file's bytes."""
        return f"{self.page}/resolve/{quote(self.revision, safe='')}/{quote(self.file)}"

    def login_advice(self) -> str:
        """Say that gated and private repositories need a token."""
        return _token_advice(
            "HF_TOKEN", f"a read token of an account that has accepted the terms at {self.page}"
        )

    def missing_advice(self) -> str:
        """Say where the names can be looked up."""
        return f"Are file and revision written as in {self.page}/tree/{self.revision}?"


@dataclass(frozen=True, slots=True)
class BucketFile:
    """An object in an S3 bucket, of Amazon or of whom AWS_ENDPOINT_URL names."""

    bucket: str
    key: str

    def link(self) -> str:
        """Sign a link with the credentials that AWS's tools use; without any, ask as the public.

        Raises:
            ValueError: if credentials or settings are there, but not usable.
        """
        import botocore.session  # half a second, and only buckets need it
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        try:
            session = botocore.session.get_session()
            signature = "s3v4" if session.get_credentials() else UNSIGNED
            region = session.get_config_variable("region") or "us-east-1"
            config = Config(signature_version=signature, region_name=region)
            client = session.create_client("s3", config=config)
            target = {"Bucket": self.bucket, "Key": self.key}
            url: str = client.generate_presigned_url("get_object", target, ExpiresIn=LINK_LIFE_S)
        except (BotoCoreError, ValueError) as error:
            raise ValueError(f"s3://{self.bucket}/{self.key}: {error}") from None
        return url

    def login_advice(self) -> str:
        """Name the variables that S3 needs."""
        return (
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) for an account that "
            "may read it, AWS_DEFAULT_REGION for the bucket's region, and AWS_ENDPOINT_URL if the "
            "bucket is not Amazon's. S3 also answers so when the key does not exist"
        )

    def missing_advice(self) -> str:
        """Say how to list the bucket."""
        return f"Are bucket and key written as in `aws s3 ls s3://{self.bucket}/ --recursive`?"


def parse_source(source: str) -> Path | Remote:
    """Read where weights come from.

    >>> parse_source("hf:owner/repo/model.safetensors@main")
    HubFile(repo='owner/repo', file='model.safetensors', revision='main')

    Raises:
        ValueError: if it is none of the forms, holds a secret, or names a pickle.
    """
    remote = _parse_remote(source)
    name = urlsplit(source).path if isinstance(remote, WebFile) else source.partition("@")[0]
    if PurePosixPath(name).suffix.lower() in PICKLES:
        raise ValueError(
            f"source {source!r} names a pickle, which may run code when it is read. Weights are "
            "read from safetensors only: name the model's .safetensors"
        )
    return remote


def _parse_remote(source: str) -> Path | Remote:
    if source.startswith(("https:", "http:")):
        return _web_file(source)
    if source.startswith("s3:"):
        if not (found := BUCKET_ADDRESS.fullmatch(source)):
            raise ValueError(f"source {source!r} is not written as s3://BUCKET/KEY")
        return BucketFile(found["bucket"], found["key"])
    if source.startswith("hf:"):
        found = HUB_ADDRESS.fullmatch(source)
        if not found or ".." in source.split("/"):
            raise ValueError(f"source {source!r} is not written as hf:OWNER/REPO/FILE@REVISION")
        return HubFile(found["repo"], found["file"], found["revision"] or "main")
    path = Path(source)
    if not source.strip() or "://" in source or path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"source {source!r} is neither an https:, s3: or hf: address nor a path inside the "
            "repository, which every clone has. Copy or link the file there and name that"
        )
    return path


def _web_file(source: str) -> WebFile:
    parts = urlsplit(source)
    try:
        is_sound = bool(parts.hostname) and parts.port != 0 and source.isprintable()
    except ValueError:  # of a port that is no number
        is_sound = False
    if not is_sound or " " in source:
        raise ValueError(f"source {source!r} is not a link")
    names = {name.lower() for name, _ in parse_qsl(parts.query)}
    if parts.username is not None or names & SECRETS:
        raise ValueError(
            "source holds a password or a token, which params must not: they are committed. "
            "Leave it out; tokens come from the environment (HF_TOKEN, CIVITAI_TOKEN, AWS_*)"
        )
    return WebFile(source)


def authorization(link: str) -> dict[str, str]:
    """Give the header that one link may have: a token goes to its own server and no other."""
    variable = _token_variable(link)
    token = os.environ.get(variable, "").strip() if variable else ""
    return {"Authorization": f"Bearer {token}"} if token else {}


def hub_endpoint() -> str:
    """Name the Hugging Face Hub, or the mirror in use."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _token_variable(link: str) -> str | None:
    """Name the environment variable that holds the token of a link's server."""
    servers = {_origin(hub_endpoint()): "HF_TOKEN", CIVITAI: "CIVITAI_TOKEN"}
    return servers.get(_origin(link))


def _origin(link: str) -> str:
    parts = urlsplit(link)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _token_advice(variable: str, what: str) -> str:
    if os.environ.get(variable):
        return f"{variable} is set, but the server does not take it: it must be {what}"
    return f"Set the environment variable {variable} to {what}"
