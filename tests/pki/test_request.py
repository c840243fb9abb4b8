"""What a robot asks the signer, and how it proves who it is."""

import re
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from shadow.errors import LocalError, Refused
from shadow.pki.certificates import Credentials, Purpose, load_credentials
from shadow.pki.keys import new_key
from shadow.pki.request import BAD_REQUEST, CODES, check_proof, known_code, make_request, new_key_of
from tests.support import CHECKOUT, Authority, now


def credentials(authority: Authority, name: str = "011", key_kind: str = "ec") -> Credentials:
    crt, key = (
        authority.robot(name)
        if key_kind == "ec"
        else authority.issue(f"{name}-rsa", name, Purpose.ROBOT, key_kind="rsa")
    )
    return load_credentials(authority.ca, crt, key, Purpose.ROBOT, now())


@pytest.mark.parametrize("key_kind", ["ec", "rsa"])
def test_a_request_proves_the_present_key_and_names_the_new_one(authority: Authority, key_kind: str) -> None:
    present, key = credentials(authority, key_kind=key_kind), new_key()
    request = make_request("011", key, present)
    check_proof(request, present.chain[0])
    assert new_key_of(request, "011").public_numbers() == key.public_key().public_numbers()


@pytest.mark.parametrize("key_kind", ["ec", "rsa"])
def test_a_proof_by_another_key(authority: Authority, key_kind: str) -> None:
    present, key = credentials(authority, key_kind=key_kind), new_key()
    other = make_request("011", key, credentials(authority, "012"))
    with pytest.raises(Refused, match=r"\(proof\): the request is not signed with the key of the present"):
        check_proof(other, present.chain[0])


def test_a_proof_of_another_request(authority: Authority) -> None:
    present = credentials(authority)
    request, other = make_request("011", new_key(), present), make_request("011", new_key(), present)
    with pytest.raises(Refused, match="not signed"):
        check_proof(replace(request, proof=other.proof), present.chain[0])


def test_a_signature_made_for_something_else_is_no_proof(authority: Authority) -> None:
    present = credentials(authority)
    request = make_request("011", new_key(), present)
    assert isinstance(present.key, ec.EllipticCurvePrivateKey)
    bare = present.key.sign(request.request, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(Refused, match="not signed"):
        check_proof(replace(request, proof=bare), present.chain[0])


def csr(key: object, name: str | None = "011") -> bytes:
    names = [] if name is None else [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (b"", r"\(bad-request\): the request for a certificate is damaged"),
        (b"\x30\x03abc", "damaged"),
        (csr(new_key())[:-1], "damaged"),
        (csr(new_key(), None), "damaged"),
        (csr(new_key(), "012"), r"\(name-mismatch\): the request is for '012', and the certificate of '011'"),
        (csr(ec.generate_private_key(ec.SECP384R1())), "not an EC key on the curve P-256"),
        (csr(ed25519.Ed25519PrivateKey.generate()), "not an EC key on the curve P-256"),
    ],
)
def test_bad_requests(authority: Authority, request_: bytes, complaint: str) -> None:
    request = replace(make_request("011", new_key(), credentials(authority)), request=request_)
    with pytest.raises(Refused, match=complaint):
        new_key_of(request, "011")


def test_a_request_whose_own_signature_is_bad(authority: Authority) -> None:
    good = csr(new_key())
    request = replace(
        make_request("011", new_key(), credentials(authority)), request=good[:-1] + bytes([good[-1] ^ 1])
    )
    with pytest.raises(Refused, match="not signed with the new key"):
        new_key_of(request, "011")


def test_a_certificate_too_large_for_a_frame(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shadow.pki.request.BLOB_MAX", 100)
    with pytest.raises(LocalError, match=r"the certificate has \d{3} bytes, and 100 can be renewed"):
        make_request("011", new_key(), credentials(authority))


def test_all_codes_are_known() -> None:
    """Of the signer, the server, and their documents."""
    modules = ("ca/applicant", "ca/signer", "pki/request", "server/signer", "cli/signer")
    sources = "".join((CHECKOUT / "shadow" / f"{module}.py").read_text() for module in modules)
    said = re.findall(r'(?:Refused|Unsigned)\(\s*"([\w-]+)"|code="([\w-]+)"', sources)
    assert {one or other for one, other in said} | {BAD_REQUEST} == CODES
    page = (CHECKOUT / "man" / "shadow-ca-signer.socket.8.scd").read_text()
    assert {*re.findall(r"^\*([a-z-]+)\*$", page.partition("The same words")[2], re.M)} == {*CODES, "other"}
    assert {known_code(code) for code in CODES} == CODES
    assert known_code("nonsense") == "other"
