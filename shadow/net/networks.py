"""Networks of IP addresses, as settings name them."""

import ipaddress
from collections.abc import Sequence
from typing import TypeAlias

from ..errors import ConfigError
from .address import true_address

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # IPv4 in the form of IPv6 (RFC 4291, section 2.5.5.2)


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks in CIDR notation with commas between them; an address alone is a network of one.

    Raises:
        ConfigError: one of them is none.
    """
    return tuple(_parse_network(word.strip()) for word in text.split(","))


def network_of(host: str, networks: Sequence[Network]) -> Network | None:
    """The first of the networks that an address is in; one from a dual-stack socket may be IPv4."""
    if not networks:
        return None
    address = true_address(host)
    return next((network for network in networks if address in network), None)


def _parse_network(word: str) -> Network:
    try:
        network = ipaddress.ip_network(word, strict=False)
    except ValueError as error:
        text = f"{word!r} is not a network such as 192.0.2.0/24 or 2001:db8::/32"
        raise ConfigError(text) from error
    if "%" in word:
        raise ConfigError(f"network {word!r}: leave out the zone")
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        raise ConfigError(f"network {word!r}: write it in its IPv4 form")
    address = ipaddress.ip_address(word.partition("/")[0])
    if network.network_address != address:
        raise ConfigError(f"network {word!r}: write {network} or {address}")
    return network
