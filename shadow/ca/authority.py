"""The CA's work: making the certificates that let robots and servers recognise each other.

One private CA, ECDSA with P-256 throughout, profiles after RFC 5280. A server's leaf carries serverAuth and
the names by which robots dial it; a robot's carries clientAuth and its name as CN. Neither carries both, so a
stolen robot key cannot impersonate the server. A peer's carries both, since the servers of a fleet dial each
other; it has no host name that a robot could dial, and no name that a robot could have.
"""

import datetime as dt
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from ..errors import ConfigError
from ..names import PEER, check_robot_name, check_server_name
from ..pki.certificates import Purpose, moment, subject, validity
from ..pki.keys import PrivateKey, new_key
from ..text import shorten

DAYS_MAX = 36500  # a century: RFC 5280 dates end with the year 9999
_COMMON_NAME_MAX = 64  # characters (RFC 5280, appendix A: ub-common-name)
_HOST_MAX = 253  # characters (RFC 1035, section 2.3.4: 255 bytes on the wire)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)  # RFC 1123, section 2.1

# A robot's clock may be a little slow, and a certificate should be valid the moment it arrives.
_BACKDATE = dt.timedelta(minutes=5)
_BACKDATE_SHARE = 20  # at most one part in this many of a renewed certificate's lifetime, which may be short

HostName = x509.DNSName | x509.IPAddress


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: PrivateKey


@dataclass(frozen=True, slots=True)
class Validity:
    """From when until when something is valid (RFC 5280, section 4.1.2.5), aware."""

    start: dt.datetime
    end: dt.datetime


def check_authority_name(name: str) -> str:
    """Return ``name`` if it may be a CA's common name.

    Raises:
        ConfigError: empty, longer than 64 characters, or not printable.
    """
    if not (name.strip() and len(name) <= _COMMON_NAME_MAX and name.isprintable()):
        raise ConfigError(
            f"CA name {shorten(name)} is not allowed: use 1 to {_COMMON_NAME_MAX} printable characters"
        )
    return name


def parse_host(text: str) -> HostName:
    """A subject alternative name from a host name or an IP address (RFC 5280, section 4.2.1.6).

    Raises:
        ConfigError: neither; or a wildcard, a name outside ASCII, or an address with a zone.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return x509.DNSName(_check_host_name(text))
    if "%" in text:
        raise ConfigError(f"address {shorten(text)} has a zone, which no certificate can hold")
    return x509.IPAddress(address)


def _check_host_name(text: str) -> str:
    if not text.isascii():
        raise ConfigError(f"host name {shorten(text)} is not ASCII: give it in its encoded form (xn--…)")
    name = text.lower()
    labels = name.split(".")
    # A last label of only digits means a mistyped IPv4 address: there can be no such top-level domain
    # (RFC 3696, section 2).
    if len(name) > _HOST_MAX or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdecimal():
        raise ConfigError(f"{shorten(text)} is neither a host name nor an IP address")
    return name


def create_authority(name: str, days: int, now: dt.datetime) -> Pair:
    """A new CA: a fresh key and a self-signed certificate (RFC 5280, section 4.2.1.9: path length 0).

    Args:
        name: common name.
        days: how long it will be valid, 1 to ``DAYS_MAX``.
        now: the present, aware.

    Raises:
        ConfigError: the name is not allowed.
    """
    owner = subject(check_authority_name(name))
    key = new_key()
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _builder(owner, key.public_key(), Validity(now - _BACKDATE, now + dt.timedelta(days=days)))
        .issuer_name(owner)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
    )
    return Pair(builder.sign(key, hashes.SHA256()), key)


def issue_server(authority: Pair, hosts: Sequence[str], days: int, now: dt.datetime) -> Pair:
    """A server's certificate, for the names and addresses in ``hosts``; the first is also its CN.

    Raises:
        ConfigError: no host, or one that is not allowed, or the certificate would outlive the CA's.
    """
    names = list(dict.fromkeys(parse_host(host) for host in hosts))
    if not names:
        raise ConfigError("a server needs at least one host name or IP address")
    # The CN is only for humans; names that do not fit there are in the alternative names.
    title = next(
        (text for text in (str(name.value) for name in names) if len(text) <= _COMMON_NAME_MAX), "server"
    )
    dates = _dates(authority, now, days)
    return _issue_pair(authority, title, Purpose.SERVER, dates, x509.SubjectAlternativeName(names))


def issue_robot(authority: Pair, name: str, days: int, now: dt.datetime) -> Pair:
    """A robot's certificate.

    Raises:
        ConfigError: the name is not allowed, or the certificate would outlive the CA's.
    """
    return _issue_pair(authority, check_robot_name(name), Purpose.ROBOT, _dates(authority, now, days))


def issue_peer(authority: Pair, server: str, days: int, now: dt.datetime) -> Pair:
    """The certificate that a server shows the other servers of its fleet.

    Raises:
        ConfigError: the id is not allowed, or the certificate would outlive the CA's.
    """
    title = f"{PEER}{check_server_name(server)}"
    return _issue_pair(authority, title, Purpose.PEER, _dates(authority, now, days))


def renew_robot(
    authority: Pair,
    name: str,
    key: ec.EllipticCurvePublicKey,
    serial: int,
    life: dt.timedelta,
    now: dt.datetime,
) -> x509.Certificate:
    """A robot's next certificate, for its new key.

    It is valid as long as the previous one, ``life``, but not longer than the CA's.
    """
    backdate = min(_BACKDATE, life / _BACKDATE_SHARE)
    end = min(now - backdate + life, validity(authority.certificate)[1])
    builder = _leaf(authority, name, Purpose.ROBOT, key, Validity(now - backdate, end))
    return builder.serial_number(serial).sign(authority.key, hashes.SHA256())


def _issue_pair(
    authority: Pair, title: str, purpose: Purpose, dates: Validity, *extensions: x509.ExtensionType
) -> Pair:
    key = new_key()
    builder = _leaf(authority, title, purpose, key.public_key(), dates)
    builder = builder.serial_number(x509.random_serial_number())
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


def _leaf(
    authority: Pair, title: str, purpose: Purpose, key: ec.EllipticCurvePublicKey, dates: Validity
) -> x509.CertificateBuilder:
    return (
        _builder(subject(title), key, dates)
        .issuer_name(authority.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purpose.usages), critical=False)
        .add_extension(key_identifier(authority.certificate), critical=False)
    )


def _dates(authority: Pair, now: dt.datetime, days: int) -> Validity:
    """The dates of a leaf; if it outlived its CA, it would promise what no peer will honour."""
    end = now + dt.timedelta(days=days)
    last = validity(authority.certificate)[1]
    if end > last:
        left = (last - now).days
        advice = f"ask for at most {left} with --days" if left else "it is time for a new CA"
        raise ConfigError(f"{days} days go beyond the CA's own end on {moment(last)}: {advice}")
    return Validity(now - _BACKDATE, end)


def _builder(owner: x509.Name, key: ec.EllipticCurvePublicKey, dates: Validity) -> x509.CertificateBuilder:
    """What all our certificates have in common."""
    return (
        x509.CertificateBuilder()
        .subject_name(owner)
        .public_key(key)
        .not_valid_before(dates.start.replace(microsecond=0))
        .not_valid_after(dates.end.replace(microsecond=0))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    """RFC 5280, section 4.2.1.3; a leaf only signs, because all our suites are ephemeral."""
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def key_identifier(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Which of a CA's keys has signed (RFC 5280, section 4.2.1.1): names alone do not tell two CAs apart."""
    try:
        ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        ski = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)


def issuer_key(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier | None:
    """What a certificate says about the key that signed it, if anything."""
    try:
        return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        return None


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, the way ``openssl x509 -fingerprint -sha256`` shows it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()
