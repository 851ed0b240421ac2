"""Connections to public addresses only: a link in an export may lead into one's own network."""

import ipaddress
import socket

from aiohttp import AddrInfoType

RECEIVED_AHEAD_BYTES = 1 << 17  # 1.3 MB/s each, 0.1 s away
NOT_PUBLIC = [  # though Python's ipaddress, in some versions, calls them global
    ipaddress.ip_network(network)
    for network in (
        *("64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96", "fec0::/10", "3fff::/20", "5f00::/16"),
        "192.0.0.0/24",  # of protocols, and the metadata of some clouds (RFC 6890)
        "168.63.129.16/32",  # Azure's own host, from within each of its machines
    )
]


class PrivateAddressError(OSError):
    """A link led to an address that is not public."""


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the open Internet.

    >>> is_public("162.159.130.233"), is_public("10.0.0.1"), is_public("::ffff:127.0.0.1")
    (True, False, False)
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # addresses that carry one of IPv4: mapped, 6to4, NAT64 (RFC 6052)
        nat64 = ip in ipaddress.IPv6Network("64:ff9b::/96")
        inner = ip.ipv4_mapped or ip.sixtofour
        if nat64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    # of local use (RFC 8215), IPv4-compatible and -translated, site-local of old; documents (RFC
    # 9637) and segments (RFC 9602)
    if any(ip in network for network in NOT_PUBLIC):
        return False
    return ip.is_global and not ip.is_multicast


def public_socket(info: AddrInfoType) -> socket.socket:
    """Open a socket to a public address.

    Every connection passes here with the address that it will truly use, so neither a redirect
    nor a name that changes its address gets around it.

    Raises:
        PrivateAddressError: if the address is not public.
    """
    if not is_public(str(info[4][0])):
        # one message for all, or aiohttp makes another error of several
        raise PrivateAddressError("not a public address")
    return modest_socket(info)


def modest_socket(info: AddrInfoType) -> socket.socket:
    """Open a socket to any address that takes in little ahead of what is written down.

    What waits in it is lost with a kill, and is to be fetched again.
    """
    family, kind, protocol, _, _ = info
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED_AHEAD_BYTES)
    return opened
