"""A link to a picture: what names the picture, when the link ends, where mirrors keep it.

Discord signs its links: `ex` and `is` are Unix times in hexadecimal digits, `hm` the signature.
"""

from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

DISCORD_HOSTS = ("cdn.discordapp.com", "media.discordapp.net")
SIGNATURE = ("ex", "is", "hm")
# media.discordapp.net scales and converts by these
CONVERSION = ("format", "quality", "width", "height")

DEFAULT_PORTS = {"http": 80, "https": 443}


def is_link(link: str) -> bool:
    """Tell whether a link is an http(s) address with a host, no password, and no way up."""
    try:
        parts = urlsplit(link)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.username is None
            and parts.port != 0  # reading it also checks its range
            and ".." not in unquote(parts.path).replace("\\", "/").split("/")
            and link.isprintable()
            and " " not in link
        )
    except ValueError:
        return False


def original(link: str) -> str:
    """Ask Discord for the file as it was uploaded, not for a copy made smaller.

    >>> original("https://media.discordapp.net/attachments/1/2/a.png?ex=6f&width=99")
    'https://cdn.discordapp.com/attachments/1/2/a.png?ex=6f'
    """
    parts = urlsplit(link)
    if parts.hostname != "media.discordapp.net":
        return link
    query = [(name, value) for name, value in parse_qsl(parts.query) if name not in CONVERSION]
    return parts._replace(netloc="cdn.discordapp.com", query=urlencode(query)).geturl()


def picture_key(link: str) -> str:
    """Name the picture: the original's link, without a signature, which changes with time."""
    parts = urlsplit(original(link))
    is_signed = set(SIGNATURE) <= dict(parse_qsl(parts.query)).keys()
    if is_signed or parts.hostname in DISCORD_HOSTS:
        parts = parts._replace(query="")
    return parts._replace(fragment="").geturl()


def picture_address(link: str) -> str:
    """Name the picture as `picture_key` does, alike for all spellings of one address.

    >>> picture_address("http://A.org:80/a%62.png?x=1"), picture_address("https://a.org/ab.png?x=1")
    ('a.org/ab.png?x=1', 'a.org/ab.png?x=1')
    """
    key = picture_key(link)
    parts = urlsplit(key)
    return f"{host_key(key)}{unquote(parts.path)}?{parts.query}"


def host_key(link: str) -> str:
    """Name the host that a link or address asks, however it is spelt.

    >>> host_key("https://CDN.example.com.:443/a.png"), host_key("http://cdn.example.com:81/a.png")
    ('cdn.example.com', 'cdn.example.com:81')
    """
    parts = urlsplit(link)
    host = (parts.hostname or "").rstrip(".")
    return host if parts.port in (None, DEFAULT_PORTS.get(parts.scheme)) else f"{host}:{parts.port}"


def expires_at(link: str) -> int | None:
    """Read when a signed link ends, as Unix time; None if it does not say."""
    query = dict(parse_qsl(urlsplit(link).query))
    if not set(SIGNATURE) <= query.keys():
        return None
    try:
        return int(query["ex"], 16)
    except ValueError:
        return None


def mirror_paths(link: str) -> list[str]:
    """Say where below a mirror the picture may lie: the link's path, as written and decoded.

    Returns:
        Relative paths that stay below the mirror; none if the link's path is not such a one.
    """
    path = urlsplit(link).path.lstrip("/")
    forms = dict.fromkeys((path, unquote(path)))
    return list(forms) if all(map(_stays_below, forms)) else []


def _stays_below(path: str) -> bool:
    """Refuse parts that lead elsewhere on some system, and those too long for a file's name."""
    parts = path.split("/")
    return all(
        part not in ("", ".", "..")
        and not set(part) & set("\\:\0")
        and len(part.encode(errors="replace")) <= 255
        for part in parts
    )
