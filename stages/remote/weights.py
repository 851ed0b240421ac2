"""What the params say of weights made elsewhere: where they are, their hash, what is allowed."""

import re
from dataclasses import dataclass

from stages.harness.params import Params
from stages.remote.address import parse_source

SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsParams(Params):
    """Section `download_weights.NAME`: one file of weights."""

    source: str  # a path in the repository, or an https:, s3: or hf: address
    sha256: str  # of the whole file, 64 hex digits
    licence: str  # an SPDX identifier, or the licence's name
    merging_allowed: bool  # may a mix that holds it be released?
    attribution: str  # whom the model card is to name, and where

    def __post_init__(self) -> None:
        """Refuse what could not be fetched, before anything is."""
        parse_source(self.source)
        if not SHA256.fullmatch(self.sha256):
            raise ValueError(
                f"sha256 must be the 64 hex digits of the file's SHA-256, got {self.sha256!r}. "
                "`sha256sum FILE` prints it; Hugging Face and Civitai show it on the file's page"
            )
        if not self.licence.strip():
            raise ValueError("licence is empty; name it, as in CreativeML-OpenRAIL-M")
