"""For how long a robot's certificate that has expired can still be renewed."""

import datetime as dt

from cryptography import x509

from .certificates import validity

_GRACE_MAX = dt.timedelta(days=7)
_GRACE_SHARE = 3


def renewable_until(certificate: x509.Certificate) -> dt.datetime:
    """Until when a robot can renew its certificate, over a session that it still has.

    That is a while longer than the certificate is valid: a third of its lifetime, and at most a week.
    """
    start, end = validity(certificate)
    return end + min(_GRACE_MAX, (end - start) / _GRACE_SHARE)


def judged_at(certificate: x509.Certificate, now: dt.datetime) -> dt.datetime:
    """The time to judge a robot's certificate by where it can be renewed: it may have expired recently."""
    last = validity(certificate)[1] - dt.timedelta(seconds=1)  # see ``check_validity``
    return min(now, last) if now < renewable_until(certificate) else now
