"""Which certificates were made from which."""

import datetime as dt

import pytest
from cryptography import x509

from shadow.ca import authority
from shadow.ca.lineage import SUCCESSORS_MAX, descendants, successors
from shadow.pki import keys
from tests.support import now

LIFE = dt.timedelta(days=30)
CA = authority.create_authority("Test CA", 3650, now())
OTHER = authority.create_authority("Test CA", 3650, now())


def made_from(parent: x509.Certificate, number: int) -> x509.Certificate:
    serial = successors(CA.certificate, parent)[number]
    return authority.renew_robot(CA, "011", keys.new_key().public_key(), serial, LIFE, now())


@pytest.fixture(scope="module")
def first() -> x509.Certificate:
    return authority.issue_robot(CA, "011", 30, now()).certificate


def test_numbers(first: x509.Certificate) -> None:
    found = successors(CA.certificate, first)
    assert found == successors(CA.certificate, first)
    assert len(set(found)) == SUCCESSORS_MAX
    assert all(0 < serial < 2**159 for serial in found)
    other = authority.issue_robot(CA, "011", 30, now()).certificate
    assert set(found) & {*successors(OTHER.certificate, first), *successors(CA.certificate, other)} == set()


def test_numbers_never_change() -> None:
    """A newer version finds what an older one has made."""
    assert successors(_GOLDEN_CA, _GOLDEN)[::7] == [_GOLDEN_FIRST, _GOLDEN_LAST]


def test_descendants(first: x509.Certificate) -> None:
    child, sister = made_from(first, 0), made_from(first, 7)
    grandchild = made_from(sister, 3)
    stranger = authority.issue_robot(CA, "011", 30, now()).certificate
    issued = [stranger, grandchild, sister, child, first]
    assert descendants(CA.certificate, [first], issued) == [child, sister, grandchild]
    assert descendants(CA.certificate, [sister], issued) == [grandchild]
    assert descendants(CA.certificate, [sister, first], issued) == [grandchild, child, sister]
    assert descendants(CA.certificate, [stranger], issued) == []
    assert descendants(OTHER.certificate, [first], issued) == []


_GOLDEN_CA = x509.load_pem_x509_certificate(b"""-----BEGIN CERTIFICATE-----
MIIBiTCCATCgAwIBAgIUNQuebQ3JDn2w0RD1sfjiDvy1xA4wCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGR29sZGVuMB4XDTI2MTEyNTIwMzEzMFoXDTM2MTEyMjIwMzYz
MFowETEPMA0GA1UEAwwGR29sZGVuMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
+2RiOR4/6oNKkFiW+3cq/uwZv46HIPU145BqY+JnCPDl3WqCdhMUc1xOfGtIYBnV
rBURCrVZ0vU0tB3kVoH5O6NmMGQwHQYDVR0OBBYEFOljb8rsEnV8G6X/ZXYpDSfQ
C+AcMBIGA1UdEwEB/wQIMAYBAf8CAQAwDgYDVR0PAQH/BAQDAgEGMB8GA1UdIwQY
MBaAFOljb8rsEnV8G6X/ZXYpDSfQC+AcMAoGCCqGSM49BAMCA0cAMEQCIGQIOJlH
mIvyNv/DvdcPBvjyUBAp6z8rdrZdNnk9WWgrAiBc/vFK+4tXMke+7nbeQAjNgQva
sMyIWY2mkfiajOCQNw==
-----END CERTIFICATE-----
""")
_GOLDEN = x509.load_pem_x509_certificate(b"""-----BEGIN CERTIFICATE-----
MIIBlTCCATygAwIBAgIUfBdlT2MtOmViBsn5awvKOPD9TFYwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGR29sZGVuMB4XDTI2MTEyNTIwMzEzMFoXDTI2MTIyNTIwMzYz
MFowDjEMMAoGA1UEAwwDMDExMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEBOPL
w3HRxAM9FB1EuZAmEJGWX7vRynNr2L+7eFkoCeshUftK6VyGqB7sYcdOOnAs4w0o
8UkmvbHyILbKg5eA7qN1MHMwHQYDVR0OBBYEFP1VbiZWzbSdZ+dnqXeGURUQtEMD
MAwGA1UdEwEB/wQCMAAwDgYDVR0PAQH/BAQDAgeAMBMGA1UdJQQMMAoGCCsGAQUF
BwMCMB8GA1UdIwQYMBaAFOljb8rsEnV8G6X/ZXYpDSfQC+AcMAoGCCqGSM49BAMC
A0cAMEQCIEFCFY7ybMAE3OUaRhzvZzgE3oHP4/SxgzvxhM7THF4AAiArVAfdvJJa
oXA+3G99RD8noEC6FdFx8UM1Tchne2T4TQ==
-----END CERTIFICATE-----
""")
_GOLDEN_FIRST = 0x4525E7D2B7CDDB04BD02F246E772163AA9135C97
_GOLDEN_LAST = 0x524C09DE63CDBCB3D5B929502A32CEEEED16564D
