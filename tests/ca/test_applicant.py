"""Who is taken for a robot that asks for its next certificate, and who is not."""

from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shadow.ca.applicant import identify
from shadow.errors import Refused
from shadow.pki.certificates import Purpose, load_credentials
from shadow.pki.keys import key_bytes, new_key
from shadow.pki.request import make_request
from tests.support import Authority, now
from tests.support.signer_socket import AGED, credentials, request


def trusted(own: Authority) -> list[x509.Certificate]:
    return [x509.load_pem_x509_certificate(own.ca.read_bytes())]


def test_a_robot_that_has_proved_who_it_is(own: Authority) -> None:
    present, key = credentials(own), new_key()
    found = identify(make_request("011", key, present), trusted(own), now())
    assert (found.name, found.present) == ("011", present.chain[0])
    assert key_bytes(found.key) == key_bytes(key.public_key())


def test_it_renews_for_robots_only(own: Authority) -> None:
    crt, key = own.issue("aged", "011", Purpose.SERVER, days=AGED)
    server = load_credentials(own.ca, crt, key, Purpose.SERVER, now())
    with pytest.raises(Refused, match=r"\(bad-request\): the certificate is not a robot's"):
        identify(make_request("011", new_key(), server), trusted(own), now())


@pytest.mark.parametrize("name", ["peer:a", "a", "011"])
def test_a_server_among_its_peers_renews_nothing(own: Authority, name: str) -> None:
    """Neither its own certificate nor, as it has the usage, that of a robot."""
    crt, key = own.issue("aged", "peer:a", Purpose.PEER, days=AGED)
    peer = load_credentials(own.ca, crt, key, Purpose.PEER, now())
    with pytest.raises(Refused, match=r"\(bad-request\): robot name 'peer:a' is not allowed"):
        identify(make_request(name, new_key(), peer), trusted(own), now())


def test_no_robot_becomes_a_server_among_its_peers(own: Authority) -> None:
    with pytest.raises(Refused, match=r"\(name-mismatch\)"):
        identify(make_request("peer:a", new_key(), credentials(own)), trusted(own), now())


def test_a_name_that_is_none(own: Authority) -> None:
    with pytest.raises(Refused, match=r"\(bad-request\): robot name '\.\./x' is not allowed"):
        identify(request(own, name="../x"), trusted(own), now())


def test_a_damaged_certificate(own: Authority) -> None:
    with pytest.raises(Refused, match=r"\(bad-request\): the certificate is damaged"):
        identify(replace(request(own), certificate=b"\x30\x03abc"), trusted(own), now())


def test_nobody_gets_a_certificate_by_somebody_elses(own: Authority) -> None:
    """What a server in the wrong hands could try: it has seen everything but the keys."""
    mine, theirs = request(own, name="011"), request(own, name="012")
    for forged in (
        replace(mine, certificate=theirs.certificate),
        replace(theirs, request=mine.request),
        replace(theirs, request=mine.request, proof=mine.proof),
    ):
        with pytest.raises(Refused, match=r"\((proof|name-mismatch)\)"):
            identify(forged, trusted(own), now())


def test_a_certificate_alone_is_no_proof(own: Authority) -> None:
    """A robot's certificate is no secret: everybody on the way has seen it."""
    seen, another = credentials(own), credentials(own, name="012")
    forged = make_request("011", new_key(), another)
    with pytest.raises(Refused, match=r"\(proof\): the request is not signed with the key of the present"):
        identify(replace(forged, certificate=seen.chain[0].public_bytes(Encoding.DER)), trusted(own), now())
