"""Networks in settings, and which addresses are in them."""

import pytest

from shadow.errors import ConfigError
from shadow.net.networks import network_of, parse_networks


@pytest.mark.parametrize(
    ("text", "host", "found"),
    [
        ("10.0.0.0/8", "10.1.2.3", "10.0.0.0/8"),
        ("10.0.0.0/8", "11.0.0.0", None),
        ("10.0.0.0/8", "::ffff:10.1.2.3", "10.0.0.0/8"),  # by a dual-stack socket
        ("192.0.2.7", "192.0.2.7", "192.0.2.7/32"),
        ("192.0.2.7", "192.0.2.8", None),
        ("2001:db8::/32", "2001:db8:ffff::1", "2001:db8::/32"),
        ("2001:db8::/32", "2001:db9::1", None),
        ("fe80::/10", "fe80::1%eth0", "fe80::/10"),
        ("::1, 10.0.0.0/8", "10.0.0.1", "10.0.0.0/8"),
        ("10.0.0.0/8,10.0.0.0/24", "10.0.0.1", "10.0.0.0/8"),
        ("0.0.0.0/0", "::1", None),
        ("::/0", "192.0.2.1", None),
        ("::/0", "::ffff:192.0.2.1", None),
    ],
)
def test_which_network(text: str, host: str, found: str | None) -> None:
    network = network_of(host, parse_networks(text))
    assert (None if network is None else str(network)) == found


def test_no_networks() -> None:
    assert network_of("not even looked at", ()) is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "'' is not a network such as 192.0.2.0/24"),
        ("10.0.0.0/8,", "'' is not a network"),
        ("10.0.0.0/8 ::1", "'10.0.0.0/8 ::1' is not a network"),
        ("10.0.0.0/33", "'10.0.0.0/33' is not a network"),
        ("balancer.example.com", "is not a network"),
        ("10.0.0.5/8", "network '10.0.0.5/8': write 10.0.0.0/8 or 10.0.0.5"),
        ("2001:db8::1/32", "write 2001:db8::/32 or 2001:db8::1"),
        ("::ffff:10.0.0.0/104", "write it in its IPv4 form"),
        ("fe80::1%eth0", "leave out the zone"),
    ],
)
def test_bad_networks(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_networks(text)
    assert complaint in str(caught.value)
