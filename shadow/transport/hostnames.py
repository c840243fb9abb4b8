"""Which host a server's certificate is for (RFC 9525, section 6)."""

import ipaddress
import re
from collections.abc import Iterable

from cryptography import x509

from ..errors import ConfigError
from ..net.address import is_ip_address

# With the underscore, which RFC 1123, section 2.1, strictly forbids in host names but many networks use.
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII | re.IGNORECASE)
_STAR = "*"
_PARENTS_MIN = 2  # labels after a wildcard: nobody owns all names of a top-level domain


def parse_reference(text: str) -> str:
    """The name or address that a server's certificate must be for, in the form that ``is_for`` expects.

    Args:
        text: as typed; a dot at the end of a name, as in DNS, is removed, because no certificate has it.

    Raises:
        ConfigError: no certificate can be for that: a wildcard, a port.
    """
    if is_ip_address(text):
        return text
    name = text.removesuffix(".")
    if not all(map(_LABEL.fullmatch, name.split("."))):
        raise ConfigError(
            f"{text!r} is no name that the server's certificate could have: give a host name or an IP "
            "address, without port and without wildcard (--server-name; without it, --rhost)"
        )
    return name


def is_for(reference: str, alternatives: Iterable[x509.GeneralName]) -> bool:
    """Whether a certificate is for a host.

    An address is compared with addresses only, a name with names. An odd alternative name matches nothing,
    and does not spoil the others.

    Args:
        reference: what ``parse_reference`` has returned.
        alternatives: the certificate's subject alternative names (RFC 5280, section 4.2.1.6).
    """
    if is_ip_address(reference):
        address = ipaddress.ip_address(reference.partition("%")[0])  # no certificate has a zone
        return any(isinstance(name, x509.IPAddress) and name.value == address for name in alternatives)
    wanted = reference.lower().split(".")
    return any(isinstance(name, x509.DNSName) and _matches(wanted, name.value) for name in alternatives)


def _matches(wanted: list[str], presented: str) -> bool:
    """One name; ``*`` stands for exactly one label, the first (RFC 9525, section 6.3)."""
    first, *parents = presented.lower().split(".")
    if first != _STAR:
        return [first, *parents] == wanted
    return len(parents) >= _PARENTS_MIN and parents == wanted[1:]
