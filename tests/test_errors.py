"""The tree of errors and the exit status of each."""

import errno

import pytest

from shadow import errors


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("ShadowError", 70),
        ("UsageError", 2),
        ("ConfigError", 78),
        ("ClockError", 75),
        ("LocalError", 71),
        ("PeerError", 76),
        ("FrameError", 76),
        ("HandshakeError", 76),
        ("IdentityError", 76),
        ("Unreachable", 69),
        ("EngineRefused", 78),
        ("Unavailable", 69),
        ("Compacted", 69),
        ("LeaseLost", 69),
    ],
)
def test_statuses(name: str, status: int) -> None:
    kind = getattr(errors, name)
    assert kind("text").exit_status == status
    assert str(kind("text")) == "text"
    assert f"{name} " in (errors.__doc__ or "")
    assert f" {status} " in (errors.__doc__ or "")


def test_refused_says_what_and_why() -> None:
    refused = errors.Refused("limit", "too many")
    assert refused.exit_status == 77
    assert str(refused) == "refused (limit): too many"
    assert (refused.code, refused.text) == ("limit", "too many")


def test_reason_is_the_c_librarys() -> None:
    asyncios = OSError(errno.ECONNREFUSED, "Connect call failed ('::1', 22, 0, 0)")
    assert errors.reason(asyncios) == "Connection refused"
    assert errors.reason(OSError("no number")) == "no number"
