"""The section `download` of the params: whom to ask, how politely, and what is taken."""

from dataclasses import dataclass

from stages.harness.params import Params
from stages.images.mirror import check_address, is_address


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
