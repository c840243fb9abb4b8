"""For how long a certificate that has expired is good enough to be renewed."""

import datetime as dt

import pytest
from cryptography import x509

from shadow.pki.certificates import Purpose, load_certificates, validity
from shadow.pki.grace import judged_at, renewable_until
from tests.support import Authority

DAY = dt.timedelta(days=1)
SECOND = dt.timedelta(seconds=1)


def certificate(own: Authority, days: float) -> x509.Certificate:
    crt, _key = own.issue("it", "011", Purpose.ROBOT, days=(0, days))
    return load_certificates(crt, "it")[0]


@pytest.mark.parametrize(("days", "more"), [(3, DAY), (21, 7 * DAY), (730, 7 * DAY)])
def test_a_third_of_its_lifetime_and_a_week_at_most(own: Authority, days: float, more: dt.timedelta) -> None:
    one = certificate(own, days)
    assert abs(renewable_until(one) - validity(one)[1] - more) <= SECOND


def test_it_is_judged_as_of_its_last_moment_until_then(own: Authority) -> None:
    one = certificate(own, 3)
    start, end = validity(one)
    last = renewable_until(one)
    assert judged_at(one, start + DAY) == start + DAY
    for late in (end, end + DAY / 2, last - SECOND):
        assert start < judged_at(one, late) < end
    for too_late in (last, last + DAY):
        assert judged_at(one, too_late) == too_late
