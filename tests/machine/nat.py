"""A network as robots have it: behind NAT, with delay and loss.

Three name spaces: the machine itself, with the server; ``nat``, which masquerades; and behind it ``robot``,
with a sshd of its own.

    robot 192.168.7.2 ── 192.168.7.1 nat 10.77.0.2 ── 10.77.0.1 server
"""

from collections.abc import Iterator
from contextlib import contextmanager

from .fleet import Fleet

INSIDE = "192.168.7.2"
DROP_IN = "[Service]\nNetworkNamespacePath=/run/netns/robot\n"  # for units that are to run behind the NAT
OUTSIDE = "10.77.0.1"

_SET_UP = """
set -e
ip netns add nat
ip netns add robot
ip link add uplink type veth peer name wan netns nat
ip -n nat link add lan type veth peer name eth0 netns robot
ip addr add 10.77.0.1/24 dev uplink
ip -n nat addr add 10.77.0.2/24 dev wan
ip -n nat addr add 192.168.7.1/24 dev lan
ip -n robot addr add 192.168.7.2/24 dev eth0
ip link set uplink up
for link in lo lan wan; do ip -n nat link set $link up; done
for link in lo eth0; do ip -n robot link set $link up; done
ip -n robot route add default via 192.168.7.1
ip netns exec nat sysctl -qw net.ipv4.ip_forward=1
ip netns exec nat nft -f - <<'END'
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "wan" masquerade
    }
}
END
tc -n nat qdisc add dev wan root netem delay 25ms 5ms loss 1%
tc qdisc add dev uplink root netem delay 25ms 5ms loss 1%
systemd-run --quiet --unit=robot-sshd --property=NetworkNamespacePath=/run/netns/robot \
    --property=RuntimeDirectory=sshd --property=RuntimeDirectoryPreserve=yes /usr/sbin/sshd -D
"""
_TEAR_DOWN = """
systemctl stop robot-sshd 'shadow-client@*'
systemctl reset-failed robot-sshd 2>/dev/null
ip netns delete robot; ip netns delete nat; ip link delete uplink 2>/dev/null
true
"""


@contextmanager
def network(fleet: Fleet) -> Iterator[None]:
    """The name spaces are there, and nothing of them afterwards."""
    fleet.machine.run(_SET_UP)
    try:
        yield
    finally:
        fleet.machine.run(_TEAR_DOWN)
